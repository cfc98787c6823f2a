"""What a prediction starts from, found and checked before any work: model folder, folds, device, images, channels."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch

from nnunet_fm.cpu.devices import device_fault
from nnunet_fm.io.dataset_json import canonical, channel_names, fault_of_channels, named_channels
from nnunet_fm.io.dataset_names import DatasetNameError, dataset_name
from nnunet_fm.io.image_folders import ImageFiles, case_name, find_images, left_out_words, shown
from nnunet_fm.io.messages import SHOWN, listed
from nnunet_fm.io.untrusted import read_object
from nnunet_fm.planfile.untrusted import read_plans
from nnunet_fm.weights.files import read_trained

Files = Mapping[str, Sequence[Path]]
"""Name of a case -> its channel files."""


class PredictionInputError(ValueError):
    """What was given cannot be predicted; the message says why, and what to do."""


def find_model_folder(dataset: str, trainer: str, plans: str, configuration: str) -> Path:
    """nnU-Net's folder of a trained model.

    Raises:
        PredictionInputError: if there is none; the message lists those of the dataset.
    """
    from nnunetv2.paths import nnUNet_results

    if not nnUNet_results.is_set():
        raise PredictionInputError(
            "the variable nnUNet_results is not set: it names the folder of trained models; or name a model's folder "
            "with -m"
        )
    try:
        name = dataset_name(dataset)
    except DatasetNameError as error:
        raise PredictionInputError(str(error)) from None
    results = Path(nnUNet_results.get(), name)
    folder = results / f"{trainer}__{plans}__{configuration}"
    if folder.is_dir():
        return folder
    trained = [path.name.split("__") for path in sorted(results.glob("*__*__*")) if path.is_dir()]
    there = [f"-tr {parts[0]} -p {parts[1]} -c {parts[2]}" for parts in trained if len(parts) == 3]
    raise PredictionInputError(
        f"no model {folder.name} in {results}; trained models there: {'; '.join(there) or 'none'}"
    )


def check_model_folder(folder: Path, folds: Sequence[int | str], checkpoint: str) -> None:
    """Check that the folder is a model's, has the checkpoint in every fold, and can be read without running its code.

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
        raise PredictionInputError(f"{folder} has no {' and no '.join(missing)}: {hint}")
    absent = [str(fold) for fold in folds if not (folder / f"fold_{fold}" / checkpoint).is_file()]
    if not absent:
        read_plans(folder / "plans.json")
        for fold in folds:
            read_trained(folder / f"fold_{fold}" / checkpoint)
        return
    found = {path.name.removeprefix("fold_"): path for path in sorted(folder.glob("fold_*")) if path.is_dir()}
    usable = [fold for fold, path in found.items() if (path / checkpoint).is_file()]
    if usable:
        cure = f"folds that have it: {', '.join(usable)}; predict with -f {' '.join(usable)}"
    else:
        others = sorted({file.name for path in found.values() for file in path.glob("checkpoint*.pth")})
        cure = f"choose another with -chk: {', '.join(others)}" if others else "the training has not saved any yet"
    what = "fold" if len(absent) == 1 else "folds"
    raise PredictionInputError(f"{folder} has no {checkpoint} of {what} {', '.join(absent)}; {cure}")


def check_device(device: torch.device) -> None:
    """Raise a PredictionInputError for a device that is not one of ours or not here."""
    if reason := device_fault(device):
        raise PredictionInputError(reason)


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
        raise PredictionInputError(f"the input {source} does not exist: name a folder of images, or an image, with -i")
    if source.is_file():
        return _case_of(source, file_ending, numbered)
    try:
        found = find_images(source, file_ending, numbered=numbered)
    except ValueError as error:
        raise PredictionInputError(str(error)) from None
    if found.cases:
        return found
    names = sorted(shown(path.name) for path in source.iterdir() if not path.name.startswith("."))
    if found.left_out:
        raise PredictionInputError(f"no images in {source}: {left_out_words(found.left_out)}")
    if names:
        raise PredictionInputError(
            f"no images in {source}: the model was trained on {file_ending} files, here are {listed(names)}"
        )
    raise PredictionInputError(f"the input folder {source} has no files")


def _case_of(file: Path, file_ending: str, numbered: bool) -> ImageFiles:
    if not file.name.endswith(file_ending):
        raise PredictionInputError(f"{file} does not end in {file_ending}, as the images that the model was trained on")
    case = case_name(file.name, file_ending)
    if file.name == case + file_ending and not numbered:
        return ImageFiles({case: [file]})
    files = sorted(file.parent.glob(f"{glob.escape(case)}_[0-9][0-9][0-9][0-9]{glob.escape(file_ending)}"))
    if file not in files:
        raise PredictionInputError(
            f"{file} lacks the number of its channel: rename it to {case}_0000{file_ending}, the next channel to "
            f"{case}_0001{file_ending}"
        )
    return ImageFiles({case: files})


def only(cases: dict[str, list[Path]], names: Iterable[str], folder: Path) -> dict[str, list[Path]]:
    """The cases of these names, in their order.

    Raises:
        PredictionInputError: for a name that is not there, with the nearest that are.
    """
    names = list(dict.fromkeys(names))
    if unknown := [name for name in names if name not in cases]:
        near = get_close_matches(unknown[0], cases, n=SHOWN) or list(cases)
        raise PredictionInputError(
            f"{folder} has no case {listed(unknown)}; it has {len(cases)}, such as {listed(near)} (--cases takes names "
            "without channel number and ending)"
        )
    return {name: cases[name] for name in names}


def named(images: Sequence[Sequence[Path]], names: Sequence[str] | None, file_ending: str) -> dict[str, list[Path]]:
    """Cases from lists of channel files, under the names given or those that the first files suggest.

    Raises:
        PredictionInputError: if files are missing, names are not unique, or there are not as many as cases.
    """
    if names is None:
        names = [case_name(Path(files[0]).name, file_ending) for files in images]
    if not images:
        raise PredictionInputError("no cases to predict")
    if folders := [name for name in names if Path(name).name != name]:
        raise PredictionInputError(f"not the name of a case: {listed(folders)}")
    if len(names) != len(images):
        raise PredictionInputError(f"{len(images)} cases, but {len(names)} names")
    if twice := sorted({name for name in names if list(names).count(name) > 1}):
        raise PredictionInputError(f"several cases have the same name: {listed(twice)}")
    if missing := [str(file) for files in images for file in files if not Path(file).is_file()]:
        raise PredictionInputError(f"no such file: {listed(missing)}")
    return {name: [Path(file) for file in files] for name, files in zip(names, images, strict=True)}


def check_channels(cases: Files, dataset_json: Mapping[str, Any], reader: Any, *, numbered: bool) -> None:
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
                f"({named_channels(dataset_json)}): give it such images"
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
            f"({named_channels(dataset_json)}): {listed(those, '; ')}{hint}"
        )


def _channels_inside(reader: Any, files: Sequence[Path]) -> int | None:
    try:
        return int(reader.read_images([str(file) for file in files])[0].shape[0])
    except Exception:  # whatever is wrong with the file: it does not show that the channels are right
        return None


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
            raise PredictionInputError("the model is no second stage of a cascade: drop -prev_stage_predictions")
        return
    if folder is None:
        raise PredictionInputError(
            f"the model is the second stage of a cascade: predict the same images with {previous_stage} first and name "
            "its output folder with -prev_stage_predictions"
        )
    if missing := [name + ending for name in cases if not (folder / (name + ending)).is_file()]:
        raise PredictionInputError(f"{folder} lacks predictions of {previous_stage}: {listed(missing)}")


def check_output(output: Path, images: Path | None) -> None:
    """Raise a PredictionInputError if results cannot be written there, or would lie among the images."""
    if images is not None and output.resolve() == images.resolve():
        raise PredictionInputError(f"the output folder {output} is the input folder: choose another with -o")
    existing = next(path for path in (output, *output.absolute().parents) if path.exists())
    effective = os.access in os.supports_effective_ids
    if not existing.is_dir() or not os.access(existing, os.W_OK, effective_ids=effective):
        raise PredictionInputError(f"cannot write to the output folder {output}: {existing} is no writable folder")


def read_dataset_json(path: Path) -> dict[str, Any]:
    """A model's ``dataset.json``, `canonical`.

    Raises:
        PredictionInputError: if it lacks channels or file ending, or they are no names.
        ForeignFileError: if it is no JSON object.
    """
    content = canonical(read_object(path))
    if reason := fault_of_channels(content, trained=True):
        raise PredictionInputError(f"{path}: {reason}")
    return content
