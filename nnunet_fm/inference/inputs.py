"""Inputs of a prediction: the request, and the checked list of cases."""

from __future__ import annotations

import glob
import os
import re
import sys
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_fm.cpu.devices import device_fault
from nnunet_fm.errors import FMError, code_of
from nnunet_fm.inference.cases import CaseFiles
from nnunet_fm.io.dataset_json import canonical, channel_names, fault_of_channels, named_channels
from nnunet_fm.io.dataset_names import DatasetNameError, dataset_name
from nnunet_fm.io.image_files import fault_of_result
from nnunet_fm.io.image_folders import ImageFiles, case_name, find_images, left_out_words, shown
from nnunet_fm.io.messages import SHOWN, listed
from nnunet_fm.io.untrusted import read_object
from nnunet_fm.planfile.untrusted import read_plans
from nnunet_fm.weights.files import read_trained

ALL_FOLDS = (0, 1, 2, 3, 4)
CUDA = torch.device("cuda")
COLOUR_READERS = ("NaturalImage2DIO",)
"""nnU-Net's readers that may find several channels in one file."""

Files = Mapping[str, Sequence[Path]]
"""Name of a case -> its channel files."""


class PredictionInputError(FMError, ValueError):
    """Error for inputs that cannot be predicted; the message says why, and what to do."""


class ModelName(NamedTuple):
    """Name of a trained model in nnUNet_results; `dataset` is an ID or a name."""

    dataset: str
    trainer: str
    plans: str
    configuration: str


@dataclass(frozen=True)
class PredictionRequest:
    """A prediction that is asked for; nothing of it has been checked.

    Attributes:
        model: nnU-Net's folder ``<trainer>__<plans>__<configuration>``, or the name of the model.
        images: a folder in nnU-Net's layout, an image in it (with its other channels), or the channel files of each
            case. Images of models that read one file per case need no channel number in their names.
        output: folder of the results.
        folds: numbers, or ``all``; the logits of several are averaged.
        checkpoint: name of the file in each fold's folder.
        cases: of a folder, the cases to predict; of lists of files, the name of each.
        device: where the networks run.
        tile_step_size: distance of sliding windows, as a share of the patch.
        mirroring: whether to average over mirrored images, where the training allows it.
        save_probabilities: whether to write ``.npz`` and ``.pkl`` files as well, for ensembles.
        overwrite: False leaves cases alone that have results already.
        processes_preprocessing: worker processes that read and preprocess; 0 for this process, None for
            `default_processes`.
        processes_export: worker processes that write results; likewise.
        previous_stage: label maps of the previous stage, for a cascade.
        num_parts: number of calls that share the cases.
        part_id: number of this call among them, from 0.
        on_device: whether a GPU holds the whole volume's logits.
        verbose: whether nnU-Net prints its steps, and errors come with a traceback.
    """

    model: Path | ModelName
    images: Path | Sequence[Sequence[Path]]
    output: Path
    folds: Sequence[int | str] = ALL_FOLDS
    checkpoint: str = "checkpoint_final.pth"
    cases: Sequence[str] | None = None
    device: torch.device = CUDA
    tile_step_size: float = 0.5
    mirroring: bool = True
    save_probabilities: bool = False
    overwrite: bool = True
    processes_preprocessing: int | None = None
    processes_export: int | None = None
    previous_stage: Path | None = None
    num_parts: int = 1
    part_id: int = 0
    on_device: bool = True
    verbose: bool = False


@dataclass(frozen=True)
class CheckedPrediction:
    """A prediction that was checked and can start.

    Attributes:
        model: nnU-Net's folder of the model.
        cases: of this call, those that have no result yet, or all of them.
        share: number of cases of this call, finished ones included.
        left_out: name of a file in the input folder that is no case -> reason.
        source: images as nnU-Net's record of the call names them: a folder, or the channel files of all cases.
        target: results, likewise: a folder, or a path without ending for each case.
    """

    model: Path
    cases: list[CaseFiles]
    share: int
    left_out: Mapping[str, str]
    source: str | list[list[str]]
    target: str | list[str]


def check_prediction(request: PredictionRequest) -> CheckedPrediction:
    """Check everything that a prediction starts from; nothing is written.

    Raises:
        PredictionInputError: for anything wrong with the request.
        PlanError, WeightsFileError: for plans or a checkpoint that would import, call or unpickle anything foreign.
        ForeignFileError: for a ``dataset.json`` that is no JSON object.
    """
    model = Path(request.model) if not isinstance(request.model, ModelName) else find_model_folder(*request.model)
    if not 0 <= request.part_id < request.num_parts:
        raise PredictionInputError(
            f"-part_id {request.part_id} is not one of -num_parts {request.num_parts}: parts count from 0",
            code="option-value",
        )
    if not 0 < request.tile_step_size <= 1:
        raise PredictionInputError(f"-step_size {request.tile_step_size} is not in (0, 1]", code="option-value")
    check_device(request.device)
    configuration = check_model_folder(model, request.folds, request.checkpoint)
    dataset_json = read_dataset_json(model / "dataset.json")
    plans = PlansManager(str(model / "plans.json"))
    ending, reader, output = dataset_json["file_ending"], plans.image_reader_writer_class(), Path(request.output)
    folder: Path | None = None
    left_out: Mapping[str, str] = {}
    if isinstance(request.images, (str, os.PathLike)):
        folder = Path(request.images)
        one_file = len(channel_names(dataset_json)) == 1 or type(reader).__name__ in COLOUR_READERS
        cases, left_out = _listed(folder, request.cases, ending, numbered=not one_file)
    else:
        cases = _named(request.images, request.cases, ending)
    _check_channels(cases, dataset_json, reader, numbered=folder is not None)
    _check_output(output, folder if folder is None or folder.is_dir() else folder.parent)
    stage = None if configuration is None else plans.get_configuration(configuration).previous_stage_name
    check_previous_stage(stage, request.previous_stage, cases, ending)
    files = [[str(file) for file in channels] for channels in cases.values()]
    outputs = [str(output / name) for name in cases]
    # Then nnU-Net's record of the call has the folder's name, as usual.
    whole = folder is not None and folder.is_dir() and request.cases is None and all(map(_is_numbered, cases, files))
    share = cases_of_call(files, outputs, request.previous_stage, ending, request.part_id, request.num_parts)
    if request.verbose:
        tell_counts(len(cases), len(share), request.part_id, request.num_parts)
    return CheckedPrediction(
        model,
        share if request.overwrite else unfinished(share, ending, probabilities=request.save_probabilities),
        len(share),
        left_out,
        str(folder) if whole else files,
        str(output) if whole else outputs,
    )


def find_model_folder(dataset: str, trainer: str, plans: str, configuration: str) -> Path:
    """nnU-Net's folder of a trained model.

    Raises:
        PredictionInputError: if there is none; the message lists those of the dataset.
    """
    from nnunetv2.paths import nnUNet_results

    if not nnUNet_results.is_set():
        raise PredictionInputError(
            "the variable nnUNet_results is not set: it names the folder of trained models; or name a model's folder "
            "with -m",
            code="variable-unset",
        )
    try:
        name = dataset_name(dataset)
    except DatasetNameError as error:
        raise PredictionInputError(str(error), code=error.code) from None
    results = Path(nnUNet_results.get(), name)
    folder = results / f"{trainer}__{plans}__{configuration}"
    if folder.is_dir():
        return folder
    trained = [path.name.split("__") for path in sorted(results.glob("*__*__*")) if path.is_dir()]
    there = [f"-tr {parts[0]} -p {parts[1]} -c {parts[2]}" for parts in trained if len(parts) == 3]
    raise PredictionInputError(
        f"no model {folder.name} in {results}; trained models there: {'; '.join(there) or 'none'}", code="model-missing"
    )


def check_model_folder(folder: Path, folds: Sequence[int | str], checkpoint: str) -> str | None:
    """Check that the folder is a model's, has the checkpoint in every fold, and can be read without running its code.

    Returns:
        Name of the configuration that was trained; None if the first checkpoint does not name it.

    Raises:
        PredictionInputError: if it is not, or a file is missing.
        PlanError, WeightsFileError: for plans or a checkpoint that would import, call or unpickle anything foreign.
    """
    missing = [name for name in ("plans.json", "dataset.json") if not (folder / name).is_file()]
    if missing:
        upper = folder.name.startswith("fold_") and (folder.parent / "plans.json").is_file()
        hint = f"give its parent, {folder.parent}, and the fold with -f" if upper else "it holds no trained model"
        if not folder.is_dir():
            hint = "there is no such folder"
        raise PredictionInputError(f"{folder} has no {' and no '.join(missing)}: {hint}", code="model-incomplete")
    absent = [str(fold) for fold in folds if not (folder / f"fold_{fold}" / checkpoint).is_file()]
    if not absent:
        read_plans(folder / "plans.json")
        first, *_ = [read_trained(folder / f"fold_{fold}" / checkpoint).get("init_args") for fold in folds]
        return first.get("configuration") if isinstance(first, Mapping) else None
    found = {path.name.removeprefix("fold_"): path for path in sorted(folder.glob("fold_*")) if path.is_dir()}
    usable = [fold for fold, path in found.items() if (path / checkpoint).is_file()]
    if usable:
        cure = f"folds that have it: {', '.join(usable)}; predict with -f {' '.join(usable)}"
    else:
        others = sorted({file.name for path in found.values() for file in path.glob("checkpoint*.pth")})
        cure = f"choose another with -chk: {', '.join(others)}" if others else "the training has not saved any yet"
    what = "fold" if len(absent) == 1 else "folds"
    raise PredictionInputError(
        f"{folder} has no {checkpoint} of {what} {', '.join(absent)}; {cure}", code="checkpoint-missing"
    )


def check_device(device: torch.device) -> None:
    """Raise a PredictionInputError for a device that is not one of ours or not here."""
    if reason := device_fault(device):
        raise PredictionInputError(reason, code="device-missing")


def read_dataset_json(path: Path) -> dict[str, Any]:
    """A model's ``dataset.json``, `canonical`.

    Raises:
        PredictionInputError: if it lacks channels or file ending, or they are no names.
        ForeignFileError: if it is no JSON object.
    """
    content = canonical(read_object(path))
    if reason := fault_of_channels(content, trained=True):
        raise PredictionInputError(f"{path}: {reason}", code="dataset-json")
    return content


def _listed(
    folder: Path, names: Sequence[str] | None, ending: str, *, numbered: bool
) -> tuple[dict[str, list[Path]], Mapping[str, str]]:
    """Cases of a folder, and its files that are no cases with the reasons, which are printed."""
    found = images_in(folder, ending, numbered=numbered)
    if names is not None:  # who names the cases leaves the others out on purpose
        return _only(found.cases, names, folder), {}
    if found.left_out:
        print(f"WARNING: not predicted: {left_out_words(found.left_out)}", file=sys.stderr)
    return found.cases, found.left_out


def images_in(source: Path, file_ending: str, *, numbered: bool = True) -> ImageFiles:
    """Cases of a folder in nnU-Net's layout, ``<case>_<four digits><ending>``; or the case that one file belongs to.

    Args:
        source: a folder, or an image file, whose other channels lie beside it.
        file_ending: of the model's images.
        numbered: False also takes ``<case><ending>``, which holds all channels of a case.

    Raises:
        PredictionInputError: if there is no such folder or file, no image in it, or one case's image twice.
    """
    if not source.exists():
        raise PredictionInputError(
            f"the input {source} does not exist: name a folder of images, or an image, with -i", code="input-missing"
        )
    if source.is_file():
        return _case_of(source, file_ending, numbered)
    try:
        found = find_images(source, file_ending, numbered=numbered)
    except ValueError as error:
        raise PredictionInputError(str(error), code=code_of(error, "image-twice")) from None
    if found.cases:
        return found
    names = sorted(shown(path.name) for path in source.iterdir() if not path.name.startswith("."))
    if found.left_out:
        raise PredictionInputError(f"no images in {source}: {left_out_words(found.left_out)}", code="images-missing")
    if names:
        raise PredictionInputError(
            f"no images in {source}: the model was trained on {file_ending} files, here are {listed(names)}",
            code="images-missing",
        )
    raise PredictionInputError(f"the input folder {source} has no files", code="images-missing")


def _case_of(file: Path, file_ending: str, numbered: bool) -> ImageFiles:
    if not file.name.endswith(file_ending):
        raise PredictionInputError(
            f"{file} does not end in {file_ending}, as the images that the model was trained on", code="image-ending"
        )
    case = case_name(file.name, file_ending)
    if file.name == case + file_ending and not numbered:
        return ImageFiles({case: [file]})
    files = sorted(file.parent.glob(f"{glob.escape(case)}_[0-9][0-9][0-9][0-9]{glob.escape(file_ending)}"))
    if file not in files:
        raise PredictionInputError(
            f"{file} lacks the number of its channel: rename it to {case}_0000{file_ending}, the next channel to "
            f"{case}_0001{file_ending}",
            code="channel-number",
        )
    return ImageFiles({case: files})


def _only(cases: dict[str, list[Path]], names: Iterable[str], folder: Path) -> dict[str, list[Path]]:
    """The cases of these names, in their order.

    Raises:
        PredictionInputError: for a name that is not there, with the nearest that are.
    """
    names = list(dict.fromkeys(names))
    if unknown := [name for name in names if name not in cases]:
        near = get_close_matches(unknown[0], cases, n=SHOWN) or list(cases)
        raise PredictionInputError(
            f"{folder} has no case {listed(unknown)}; it has {len(cases)}, such as {listed(near)} (--cases takes names "
            "without channel number and ending)",
            code="case-unknown",
        )
    return {name: cases[name] for name in names}


def _named(images: Sequence[Sequence[Path]], names: Sequence[str] | None, file_ending: str) -> dict[str, list[Path]]:
    """Cases from lists of channel files, under the names given or those that the first files suggest.

    Raises:
        PredictionInputError: if files are missing, names are not unique, or there are not as many as cases.
    """
    if names is None:
        names = [case_name(Path(files[0]).name, file_ending) for files in images]
    if not images:
        raise PredictionInputError("no cases to predict", code="cases-none")
    if folders := [name for name in names if Path(name).name != name]:
        raise PredictionInputError(f"not the name of a case: {listed(folders)}", code="case-name")
    if len(names) != len(images):
        raise PredictionInputError(f"{len(images)} cases, but {len(names)} names", code="cases-names")
    if twice := sorted({name for name in names if list(names).count(name) > 1}):
        raise PredictionInputError(f"several cases have the same name: {listed(twice)}", code="case-twice")
    if missing := [str(file) for files in images for file in files if not Path(file).is_file()]:
        raise PredictionInputError(f"no such file: {listed(missing)}", code="input-missing")
    return {name: [Path(file) for file in files] for name, files in zip(names, images, strict=True)}


def _check_channels(cases: Files, dataset_json: Mapping[str, Any], reader: Any, *, numbered: bool) -> None:
    """Raise a PredictionInputError unless every case has the model's channels.

    Args:
        cases: what will be predicted.
        dataset_json: the model's.
        reader: nnU-Net's; some read several channels from one file (RGB, 4D), which is found out from one case.
        numbered: whether names of files may end in their channel's number.
    """
    ending, expected = dataset_json["file_ending"], len(channel_names(dataset_json))

    def numbers(files: Sequence[Path]) -> list[int]:
        if not numbered:
            return list(range(len(files)))
        found = [re.search(r"_(\d{4})$", Path(file).name.removesuffix(ending)) for file in files]
        return [int(match[1]) if match else index for index, match in enumerate(found)]

    wrong = {name: files for name, files in cases.items() if numbers(files) != list(range(expected))}
    counts = {len(files) for files in wrong.values()}
    if len(wrong) == len(cases) and len(counts) == 1 and max(counts) < expected:
        files = next(iter(wrong.values()))
        inside = _channels_inside(reader, files) if numbers(files) == list(range(len(files))) else None
        if inside == expected:
            return
        if inside is not None and inside > 1:
            raise PredictionInputError(
                f"{Path(files[0]).name} has {inside} channels, the model has {expected} "
                f"({named_channels(dataset_json)}): give it such images",
                code="channels-count",
            )
    if wrong:
        those = [
            f"{name} has {', '.join(f'{number:04d}' for number in numbers(files)) or 'none'}"
            for name, files in wrong.items()
        ]
        files = next(iter(wrong.values()))
        only = Path(files[0]).name.removesuffix(ending) if expected == len(files) == 1 else None
        hint = "" if only is None else f". If the number belongs to the name, rename it to {only}_0000{ending}"
        raise PredictionInputError(
            f"{len(wrong)} of {len(cases)} cases do not have the channels of the model "
            f"({named_channels(dataset_json)}): {listed(those, '; ')}{hint}",
            code="channels-count",
        )


def _channels_inside(reader: Any, files: Sequence[Path]) -> int | None:
    try:
        return int(reader.read_images([str(file) for file in files])[0].shape[0])
    except Exception:  # whatever is wrong with the file: it does not show that the channels are right
        return None


def _check_output(output: Path, images: Path | None) -> None:
    """Raise a PredictionInputError if results cannot be written there, or would lie among the images."""
    if images is not None and output.resolve() == images.resolve():
        raise PredictionInputError(
            f"the output folder {output} is the input folder: choose another with -o", code="output-is-input"
        )
    existing = next(path for path in (output, *output.absolute().parents) if path.exists())
    effective = os.access in os.supports_effective_ids
    if not existing.is_dir() or not os.access(existing, os.W_OK, effective_ids=effective):
        raise PredictionInputError(
            f"cannot write to the output folder {output}: {existing} is no writable folder", code="output-not-writable"
        )


def check_previous_stage(previous_stage: str | None, folder: Path | None, cases: Iterable[str], ending: str) -> None:
    """Raise a PredictionInputError unless label maps of a previous stage are given exactly where a cascade needs them.

    Args:
        previous_stage: the configuration that the model's is the second stage of, None outside of cascades.
        folder: of the label maps.
        cases: names of what will be predicted.
        ending: of the label maps' names.
    """
    if previous_stage is None:
        if folder is not None:
            raise PredictionInputError(
                "the model is no second stage of a cascade: drop -prev_stage_predictions", code="cascade-unneeded"
            )
        return
    if folder is None:
        raise PredictionInputError(
            f"the model is the second stage of a cascade: predict the same images with {previous_stage} first and name "
            "its output folder with -prev_stage_predictions",
            code="cascade-missing",
        )
    if missing := [name + ending for name in cases if not (folder / (name + ending)).is_file()]:
        raise PredictionInputError(
            f"{folder} lacks predictions of {previous_stage}: {listed(missing)}", code="cascade-incomplete"
        )


def _is_numbered(case: str, files: Sequence[str]) -> bool:
    """Whether the first file of a case has a channel's number in its name, as nnU-Net's own listing needs it."""
    return Path(files[0]).name.startswith(f"{case}_0000")


def cases_of_call(
    files: Sequence[Sequence[str]],
    outputs: Sequence[str],
    previous_stage: str | Path | None,
    ending: str,
    part_id: int,
    num_parts: int,
) -> list[CaseFiles]:
    """Return every ``num_parts``-th case from ``part_id`` on.

    Args:
        files: channel files of all cases.
        outputs: path of each result, without an ending.
        previous_stage: folder of the label maps that a cascade starts from.
        ending: of label maps.
        part_id: number of this call, from 0.
        num_parts: number of calls that share the cases.
    """
    return [
        CaseFiles(
            channels,
            None if previous_stage is None else str(Path(previous_stage, Path(output).name + ending)),
            Path(output),
        )
        for channels, output in list(zip(files, outputs, strict=True))[part_id::num_parts]
    ]


def tell_counts(total: int, share: int, part_id: int, num_parts: int) -> None:
    """Print the numbers of cases as nnU-Net does."""
    print(f"There are {total} cases in the source folder")
    print(f"I am process {part_id} out of {num_parts} (max process ID is {num_parts - 1}, we start counting with 0!)")
    print(f"There are {share} cases that I would like to predict")


def unfinished(cases: Sequence[CaseFiles], ending: str, *, probabilities: bool) -> list[CaseFiles]:
    """Return the cases without a result; name damaged results, which do not count.

    Args:
        cases: to look for.
        ending: of label maps.
        probabilities: whether these are wanted too.
    """
    return [case for case in cases if not _has_result(case.output, ending, Path(case.files[0]), probabilities)]


def _has_result(output: Path, ending: str, image: Path, probabilities: bool) -> bool:
    label_map = output.with_name(output.name + ending)
    archive = output.with_name(output.name + ".npz")
    if not label_map.is_file() or (probabilities and not archive.is_file()):
        return False
    fault = fault_of_result(label_map, image)
    if fault is None and probabilities and not _is_whole_archive(archive):
        fault = f"{archive.name} is damaged or cut off"
    if fault is not None:
        print(f"WARNING: {output.name} is predicted again: {fault}", file=sys.stderr)
    return fault is None


def _is_whole_archive(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error):
        return False
