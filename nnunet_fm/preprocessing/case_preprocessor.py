"""Preprocessing of a case: crop, normalisation and resampling with the results of nnU-Net in less time and memory."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import nnunetv2
import numpy as np
import pandas as pd
import SimpleITK as sitk
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.preprocessing.normalization.default_normalization_schemes import ImageNormalization
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.utilities import find_class_by_name
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from numpy.typing import NDArray

from nnunet_fm.errors import FMError, InvalidValueError, code_of
from nnunet_fm.io.dataset_json import canonical
from nnunet_fm.io.image_faults import exact, unreadable
from nnunet_fm.io.image_files import read_image
from nnunet_fm.io.untrusted import read_object
from nnunet_fm.preprocessing.class_locations import sample_locations
from nnunet_fm.preprocessing.cropping import nonzero_region
from nnunet_fm.preprocessing.intensities import is_constant, why_constant
from nnunet_fm.preprocessing.whole_images import WholeSimpleITKIO, whole_images

Case = tuple[NDArray[np.float32], NDArray[np.integer], dict[str, Any]]

OUTSIDE = -1
"""nnU-Net's label of background outside of the nonzero region."""


class CaseError(FMError, ValueError):
    """A case cannot be read or preprocessed; the message names its files."""


def _cropped_labels(seg: NDArray[np.number] | None, nonzero: NDArray[np.bool_]) -> NDArray[np.number]:
    """Integer labels of a cropped label map ``(Z, Y, X)``; `OUTSIDE` in the background around the nonzero region."""
    if seg is None:
        return nonzero.view(np.int8) + np.int8(OUTSIDE)
    labels = _integers(seg)
    labels[(labels == 0) & ~nonzero] = OUTSIDE
    return labels


def _check_finite(image: NDArray[np.float32], channel: NDArray[np.number], index: int) -> None:
    """Raise an error for a preprocessed channel with voxels that are NaN or infinite: they would end the training."""
    if not np.isfinite(image.sum()):
        why_constant(channel, index)  # raises the error where large intensities are the reason
        raise InvalidValueError(
            f"channel {index} has voxels that are NaN or infinite: replace them", code="image-not-finite"
        )


def _check_shapes(data: NDArray[np.number], seg: NDArray[np.number] | None, schemes: Sequence[str]) -> None:
    """Raise an error for another number of channels than the plan has, or a label map of another shape."""
    if len(data) != len(schemes):
        raise InvalidValueError(
            f"{len(data)} channels or volumes in time, where the plan has {len(schemes)}", code="channels-count"
        )
    if seg is not None and len(seg) != 1:
        raise InvalidValueError(f"the label map has {len(seg)} volumes, not one", code="label-map-shape")
    if seg is not None and seg.shape[1:] != data.shape[1:]:
        raise InvalidValueError(
            f"images of {data.shape[1:]} voxels come with a label map of {seg.shape[1:]}: put both on one grid",
            code="grid-differs",
        )


class CasePreprocessor(DefaultPreprocessor):
    """nnU-Net's preprocessing of a case, for training and for prediction.

    Channels are cropped, normalised and resampled one after the other, in float32; label maps are integers from the
    start. Besides the images as they were read and the result it needs five copies of a channel at most.
    """

    where = ""
    """Files of the case, for warnings."""
    has_foreground = False
    """Whether the label map of the last case had a voxel of a class."""

    def run_case_npy(
        self,
        data: NDArray[np.number],
        seg: NDArray[np.number] | None,
        properties: dict[str, Any],
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        dataset_json: dict[str, Any] | str,
    ) -> Case:
        """Preprocess images ``(C, Z, Y, X)`` with their label map ``(1, Z, Y, X)`` or without; inputs stay as they are.

        Args:
            properties: what nnU-Net's reader tells about the files, spacing in mm at least; gains the shapes before and
                after cropping, the crop's bounding box and, with a label map, the ``class_locations``.

        Returns:
            float32 images, int8 or int16 labels (-1: background outside the nonzero region), ``properties``.

        Raises:
            ValueError: if images and label map differ in shape, or an image has voxels that are NaN, infinite or too
                large.
        """
        dataset_json = _content(dataset_json)
        _check_shapes(data, seg, configuration_manager.normalization_schemes)
        axes = [0, *(axis + 1 for axis in plans_manager.transpose_forward)]
        data = data.transpose(axes)
        spacing = [properties["spacing"][axis] for axis in plans_manager.transpose_forward]
        target = list(configuration_manager.spacing)
        if len(target) < 3:  # a 2D configuration keeps the distance of its slices
            target = [spacing[0], *target]

        properties["shape_before_cropping"] = data.shape[1:]
        nonzero, box, crop = nonzero_region(data)
        properties["bbox_used_for_cropping"] = box
        properties["shape_after_cropping_and_before_resampling"] = nonzero.shape
        shape = compute_new_shape(nonzero.shape, spacing, target)
        labels = _cropped_labels(None if seg is None else seg.transpose(axes)[0][crop], nonzero)[None]
        del nonzero

        images = None
        for index, channel in enumerate(data):
            normaliser = _normaliser(index, plans_manager, configuration_manager)
            image = self._normalised(index, channel[crop], labels[0], normaliser)
            image = configuration_manager.resampling_fn_data(image[None], shape, spacing, target)[0]
            _check_finite(image, channel[crop], index)
            if images is None:
                images = np.empty((len(data), *image.shape), dtype=np.float32)
            images[index] = image
        assert images is not None
        labels = configuration_manager.resampling_fn_seg(labels, shape, spacing, target)
        if self.verbose:
            print(f"{properties['shape_after_cropping_and_before_resampling']} voxels of {spacing} mm, "
                  f"resampled to {images.shape[1:]} voxels of {target} mm")  # fmt: skip
        if seg is not None:
            locations = sample_locations(labels, located_classes(plans_manager, dataset_json))
            self.has_foreground = any(len(voxels) for label, voxels in locations.items() if not _has_outside(label))
            properties["class_locations"] = locations
            labels = self.modify_seg_fn(labels, plans_manager, dataset_json, configuration_manager)
        return images, labels.astype(np.int16 if labels.max() > 127 else np.int8, copy=False), properties

    def _normalised(
        self, index: int, channel: NDArray[np.number], labels: NDArray[np.number], normaliser: Any
    ) -> NDArray[np.float32]:
        """Normalise a cropped channel ``(Z, Y, X)``; name a channel that becomes constant."""
        # always a copy, in the order of the plan's axes: normalisers write into what they get
        image = normaliser.run(np.array(channel, dtype=np.float32, order="C"), labels)
        if is_constant(image):
            print(f"WARNING: {self.where}{why_constant(channel, index)}", file=sys.stderr)
        return image

    def run_case(
        self,
        image_files: Sequence[str],
        seg_file: str | None,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        dataset_json: dict[str, Any] | str,
    ) -> Case:
        """Read the files of a case, one per channel and the label map or ``None``, and preprocess it; see above.

        Raises:
            CaseError: as `run_case_npy`, for files that are damaged or cannot be read, where a normaliser refuses an
                image, and for labels that ``dataset.json`` does not have; the message names the files.
        """
        _warn_of_numbers(image_files)
        images, reader = ", ".join(map(str, image_files)), whole_images(plans_manager.image_reader_writer_class)()
        with _named_on_failure(images):
            data, properties = reader.read_images(image_files)
        seg = None
        if seg_file is not None:
            with _named_on_failure(seg_file):
                seg = _read_labels(reader, seg_file)
            _check_labels(seg, str(seg_file), _content(dataset_json))
        self.where = f"{', '.join(Path(file).name for file in image_files)}: "
        try:
            return self.run_case_npy(data, seg, properties, plans_manager, configuration_manager, dataset_json)
        except (ValueError, AssertionError) as error:  # the latter of nnU-Net's normalisers
            raise CaseError(
                f"{images if seg_file is None else f'{images}, {seg_file}'}: {error}",
                code=code_of(error, "case-invalid"),
            ) from error


def _warn_of_numbers(files: Sequence[str]) -> None:
    """Say so where files are numbered otherwise than channels: nnU-Net's own commands count them only."""
    found = [re.search(r"_(\d{4})\.", Path(file).name) for file in files]
    numbers = [int(match[1]) for match in found if match]
    if len(files) == len(numbers) > 1 and numbers != list(range(len(numbers))):
        print(f"WARNING: {', '.join(map(str, files))} are taken for channels 0 to {len(numbers) - 1} in this order")


@contextmanager
def _named_on_failure(files: str) -> Iterator[None]:
    """Turn any error of a reader into a CaseError that names the files."""
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            yield
    except MemoryError:
        raise
    except Exception as error:  # readers of images let through whatever their libraries say of a file
        raise CaseError(unreadable(files, error, printed.getvalue()), code=code_of(error, "case-unreadable")) from error
    print(printed.getvalue(), end="")


def _normaliser(
    channel: int, plans_manager: PlansManager, configuration_manager: ConfigurationManager
) -> ImageNormalization:
    """The plan's normalisation of a channel.

    Raises:
        ValueError: if its scheme is unknown.
    """
    scheme = configuration_manager.normalization_schemes[channel]
    module = "preprocessing.normalization"
    found = find_class_by_name.recursive_find_python_class(
        str(Path(nnunetv2.__path__[0], *module.split("."))), scheme, f"nnunetv2.{module}"
    )
    if found is None:
        raise InvalidValueError(
            f"the plan's normalization scheme '{scheme}' is known neither to nnU-Net nor to nnunet-fm",
            code="normalization-unknown",
        )
    return found(
        use_mask_for_norm=configuration_manager.use_mask_for_norm[channel],
        intensityproperties=plans_manager.foreground_intensity_properties_per_channel[str(channel)],
    )


def _read_labels(reader: BaseReaderWriter, file: str) -> NDArray[np.number]:
    """The label map ``(1, Z, Y, X)`` in a file, as integers; nnU-Net's reader makes float32 of it."""
    if type(reader) is not WholeSimpleITKIO:
        return _integers(reader.read_seg(file)[0])
    image = read_image(Path(file))
    labels = sitk.GetArrayViewFromImage(image)
    return _integers(labels.reshape((1,) * (4 - labels.ndim) + labels.shape))


def _integers(labels: NDArray[np.number]) -> NDArray[np.number]:
    """A copy as int16, in C order; in the type it has if int16 cannot hold its values."""
    integers = labels.astype(np.int16, order="C")
    fits = np.can_cast(labels.dtype, np.int16) or np.array_equal(integers, labels)
    return integers if fits else labels.copy(order="C")


def _check_labels(labels: NDArray[np.number], file: str, dataset_json: dict[str, Any]) -> None:
    """Raise a CaseError for a label map with values that no class has: the loss would end the training."""
    values = dataset_json["labels"].values()
    known = {number for value in values for number in (value if isinstance(value, (list, tuple)) else [value])}
    foreign = sorted(value for value in pd.unique(labels.reshape(-1)) if value not in known | {0})
    if not foreign:
        return
    shown = ", ".join(exact(value) for value in foreign[:5]) + (" …" if len(foreign) > 5 else "")
    rule = (
        "labels are whole numbers" if any(float(value) % 1 for value in foreign) else "dataset.json has no such labels"
    )
    raise CaseError(
        f"{file} has voxels of {shown}, but {rule}: correct the label map or dataset.json", code="labels-unknown"
    )


def _content(dataset_json: dict[str, Any] | str) -> dict[str, Any]:
    """``dataset.json``, of which nnU-Net may give the path, `canonical`."""
    if isinstance(dataset_json, str):
        dataset_json = read_object(Path(dataset_json))
    return canonical(dataset_json)


def located_classes(plans_manager: PlansManager, dataset_json: dict[str, Any] | str) -> list[int | tuple[int, ...]]:
    """The labels or regions whose locations nnU-Net wants; with an ignore label also everything annotated as one."""
    manager = plans_manager.get_label_manager(_content(dataset_json))
    classes = list(manager.foreground_regions if manager.has_regions else manager.foreground_labels)
    if manager.has_ignore_label:
        classes.append((OUTSIDE, *manager.all_labels))
    return classes


def _has_outside(label: int | tuple[int, ...]) -> bool:
    """Whether this is the entry for everything that is annotated, which no class is."""
    return isinstance(label, tuple) and OUTSIDE in label
