"""Prediction of images in memory by a model that is loaded once: no files are written, no processes are started."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any, Literal, TypeAlias, overload

import numpy as np
import SimpleITK as sitk
import torch
from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from numpy.typing import NDArray

from nnunet_fm.inference.cases import PlannedModel
from nnunet_fm.inference.inputs import CUDA, PredictionInputError
from nnunet_fm.inference.label_map import label_map
from nnunet_fm.inference.predictor import load_predictor, prepare_for_cpu
from nnunet_fm.inference.preprocess import doubts
from nnunet_fm.io.dataset_json import channel_names
from nnunet_fm.preprocessing.whole_images import properties_of, whole_images

Array = NDArray[Any]
Source: TypeAlias = str | os.PathLike[str] | sitk.Image
THICK = 999.0
"""Distance in mm that nnU-Net's readers give to the one slice of a 2D image."""


class Predictor:
    """A trained model, ready to predict one image after the other.

    Several threads may share a predictor: they preprocess side by side and take turns on the network.

    Args:
        model: folder of a trained model, ``<trainer>__<plans>__<configuration>``.
        folds: whose networks are averaged; by default all that have the checkpoint.
        checkpoint: name of the file in each fold's folder.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``; by default a GPU of CUDA, or else the processor.
        tile_step_size: distance of sliding windows, as a share of the patch.
        mirroring: whether to average over mirrored images, where the training allows it.

    Raises:
        PredictionInputError: for a folder without the model or the checkpoint, an absent device, or a model that needs
            the label maps of a previous stage.
        PlanError, WeightsFileError: for plans or a checkpoint that would run code.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        folds: Sequence[int | str] | None = None,
        checkpoint: str = "checkpoint_final.pth",
        device: str | torch.device | None = None,
        tile_step_size: float = 0.5,
        mirroring: bool = True,
    ) -> None:
        folder = Path(model)
        chosen = torch.device(device) if device is not None else CUDA if torch.cuda.is_available() else "cpu"
        self._predictor = load_predictor(
            folder, folds or trained_folds(folder, checkpoint), checkpoint, device=torch.device(chosen),
            tile_step_size=tile_step_size, mirroring=mirroring,
        )  # fmt: skip
        configuration = self._predictor.configuration_manager
        if (stage := configuration.previous_stage_name) is not None:
            raise PredictionInputError(
                f"{folder} needs the label maps of '{stage}', which `nnunet-fm predict` takes from files",
                code="previous-stage-missing",
            )
        prepare_for_cpu(self._predictor)
        self._model = PlannedModel(self._predictor.plans_manager, configuration, self._predictor.dataset_json)
        self._model.prepare()
        self._lock = Lock()

    @property
    def labels(self) -> dict[str, Any]:
        """Name of each class -> its number in label maps; regions map to the numbers they are made of."""
        return dict(self._predictor.dataset_json["labels"])

    @property
    def channels(self) -> list[str]:
        """Names of the channels that an image has to have, in this order."""
        return list(channel_names(self._predictor.dataset_json))

    @overload
    def predict(self, image: Array, *, spacing: Sequence[float], probabilities: Literal[False] = False) -> Array: ...
    @overload
    def predict(
        self, image: Array, *, spacing: Sequence[float], probabilities: Literal[True]
    ) -> tuple[Array, Array]: ...
    @overload
    def predict(self, image: Source | Sequence[Source], *, probabilities: Literal[False] = False) -> Any: ...
    @overload
    def predict(self, image: Source | Sequence[Source], *, probabilities: Literal[True]) -> tuple[Any, Array]: ...
    def predict(
        self,
        image: Array | Source | Sequence[Source],
        *,
        spacing: Sequence[float] | None = None,
        probabilities: bool = False,
    ) -> Any:
        """Predict one image; the label map equals that of ``nnunet-fm predict`` voxel for voxel.

        Args:
            image: an array ``(C, Z, Y, X)``, or ``(Z, Y, X)`` of a model with one channel, or ``(Y, X)`` of a 2D image,
                with the axes in SimpleITK's order; a SimpleITK image; the path of a file; or a list of images or of
                paths with one per channel.
            spacing: of an array, mm between voxels along z, y, x, or along y, x of a 2D image.
            probabilities: whether to return the probability of each class, too.

        Returns:
            The label map on the image's grid: an array ``(Z, Y, X)`` or ``(Y, X)`` for an array, an array ``(Z, Y, X)``
            in the order of the model's reader for paths, a SimpleITK image with the image's geometry for SimpleITK
            images. With ``probabilities`` a pair of it and an array ``(K, Z, Y, X)`` of classes or regions.

        Raises:
            PredictionInputError: for another number of channels or axes than the model takes, voxels that are NaN, a
                spacing that is missing or not positive.
            ForeignFileError: for a damaged file.
        """
        if isinstance(image, np.ndarray):
            channels, properties = self._array(image, spacing)
            labels, shares = self._predict(channels, properties, probabilities)
            found: Any = labels[0] if image.ndim == 2 else labels
        else:
            if spacing is not None:
                raise PredictionInputError(
                    "spacing is given for arrays only; images have their own", code="spacing-twice"
                )
            sources = [image] if isinstance(image, (str, os.PathLike, sitk.Image)) else list(image)
            if all(isinstance(source, sitk.Image) for source in sources):
                found, shares = self._predict_sitk(sources, probabilities)
            elif any(isinstance(source, sitk.Image) for source in sources):
                raise PredictionInputError("channels are either all images or all paths", code="channels-mixed")
            else:
                reader = whole_images(self._model.plans.image_reader_writer_class)()
                channels, properties = reader.read_images([os.fspath(source) for source in sources])
                found, shares = self._predict(channels, properties, probabilities)
        return (found, shares) if probabilities else found

    def _array(self, image: Array, spacing: Sequence[float] | None) -> tuple[Array, dict[str, Any]]:
        """Channels ``(C, Z, Y, X)`` and properties of an array, as nnU-Net's readers give them."""
        axes = 2 if image.ndim == 2 else 3
        if spacing is None or len(spacing) != axes or not all(0 < float(size) < np.inf for size in spacing):
            raise PredictionInputError(
                f"an array of shape {image.shape} needs spacing=({'z, ' * (axes == 3)}y, x) in mm, not {spacing}",
                code="spacing-missing",
            )
        sizes = [float(size) for size in spacing]
        shapes = {2: (1, 1, *image.shape), 3: (1, *image.shape), 4: image.shape}
        if image.ndim not in shapes:
            raise PredictionInputError(
                f"an image has the axes (C, Z, Y, X), not {image.ndim} of shape {image.shape}", code="image-axes"
            )
        return image.reshape(shapes[image.ndim]), {"spacing": sizes if axes == 3 else [max(sizes) * THICK, *sizes]}

    def _predict_sitk(self, images: list[sitk.Image], probabilities: bool) -> tuple[sitk.Image, Array | None]:
        """Label map as an image; turned as the model's reader turns files, and back."""
        first = images[0]
        turned = issubclass(self._model.plans.image_reader_writer_class, NibabelIOWithReorient)
        used = [sitk.DICOMOrient(image, "RAS") for image in images] if turned else images
        if len({(image.GetSize(), image.GetSpacing()) for image in used}) > 1:
            raise PredictionInputError(
                f"the channels have different sizes: {', '.join(str(image.GetSize()) for image in used)} voxels",
                code="channels-differ",
            )
        arrays = [sitk.GetArrayViewFromImage(image) for image in used]
        if arrays[0].ndim != used[0].GetDimension():
            raise PredictionInputError(
                "an image with several values per voxel: give one image per channel", code="image-axes"
            )
        shape = (1,) * (3 - arrays[0].ndim) + arrays[0].shape
        channels = np.stack([array.reshape(shape) for array in arrays]).astype(np.float32)
        labels, shares = self._predict(channels, properties_of(used[0], arrays[0].ndim), probabilities)
        found = sitk.GetImageFromArray(labels[0] if first.GetDimension() == 2 else labels)
        found.CopyInformation(used[0])
        if turned:
            code = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(first.GetDirection())
            found = sitk.DICOMOrient(found, code)
        return found, shares

    def _predict(
        self, channels: Array, properties: dict[str, Any], probabilities: bool
    ) -> tuple[NDArray[np.integer[Any]], Array | None]:
        """Label map ``(Z, Y, X)`` and, where asked for, probabilities ``(K, Z, Y, X)`` of channels ``(C, Z, Y, X)``."""
        model = self._model
        if len(channels) != len(self.channels):
            raise PredictionInputError(
                f"the image has {len(channels)} channels, the model takes {len(self.channels)}: "
                f"{', '.join(self.channels)}",
                code="channels-count",
            )
        if not np.isfinite(channels.sum(dtype=np.float64)):
            raise PredictionInputError(
                "the image has voxels that are NaN or infinite: replace them, say by the value of air",
                code="image-not-finite",
            )
        for warning in doubts(model, channels):
            warnings.warn(warning, stacklevel=3)
        preprocessor = model.configuration.preprocessor_class(verbose=False)
        data, _, properties = preprocessor.run_case_npy(
            channels, None, properties, model.plans, model.configuration, model.dataset_json
        )
        inputs = torch.from_numpy(np.ascontiguousarray(data, dtype=np.float32))
        with self._lock:
            logits = self._predictor.predict_logits_from_preprocessed_data(inputs).cpu().numpy()
        manager = model.plans.get_label_manager(model.dataset_json)
        if probabilities:
            labels, shares = convert_predicted_logits_to_segmentation_with_correct_shape(
                logits, model.plans, model.configuration, manager, properties, return_probabilities=True,
                num_threads_torch=torch.get_num_threads(),
            )  # fmt: skip
            return labels, shares
        found = label_map(logits, properties, model.configuration, model.plans, manager)
        if found is None:  # a plan with another resampling than those that `label_map` knows
            found = convert_predicted_logits_to_segmentation_with_correct_shape(
                logits, model.plans, model.configuration, manager, properties,
                num_threads_torch=torch.get_num_threads(),
            )  # fmt: skip
        return found, None


def trained_folds(folder: Path, checkpoint: str) -> list[int | str]:
    """Folds of a model's folder that have a checkpoint: the numbered ones, or else ``all``.

    Returns:
        Fold 0 where there is none, whose absence is then named.
    """
    found = {path.parent.name.removeprefix("fold_") for path in folder.glob(f"fold_*/{checkpoint}")}
    numbered = sorted(int(fold) for fold in found if fold.isdigit())
    return [*numbered] or (["all"] if "all" in found else [0])
