"""Faults of prediction: what is given, and what happens meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from multiprocessing import active_children
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
import torch

from tests.faults.registry import SHAPE, Bench, Seen, change_json, cut_in_half, fault, seen_in
from tests.helpers.convert_tester import edit
from tests.helpers.datasets import write_image

STAGE = "Predicting"
NOTHING = "nothing was written"


def call(model: Path, images: Path, output: Path, *more: str | Path) -> tuple[str | Path, ...]:
    """Arguments of a prediction in this process, on the CPU."""
    return ("predict", "-m", model, "-i", images, "-o", output, "-f", "0", "-device", "cpu", "-npp", "0", "-nps", "0",
            "-q", *more)  # fmt: skip


def refused(at: Bench, *arguments: str | Path) -> Seen:
    """A prediction that has to be refused before anything is written."""
    with at.unchanged():
        seen = at.fails(*arguments)
    return seen


def others_predicted(at: Bench, damaged: Path, images: Path, **model: object) -> Seen:
    """One of several images cannot be predicted; all others have to be."""
    seen = at.fails(*call(at.model(**model), images, at.root / "out"), exit_code=3)
    done = {file.name for file in (at.root / "out").glob("*.nii.gz")}
    cases = {f"{file.name[:7]}.nii.gz" for file in images.iterdir()}
    assert cases - done == {f"{damaged.name[:7]}.nii.gz"}, done
    assert damaged.name[:7] in seen.text
    return seen


@fault(
    STAGE,
    "One of three images is cut off in its middle, which SimpleITK reads as zeros.",
    happens="the case is named, all others are predicted, exit code 3",
    keeps="the label maps of the others",
    code="cases-failed",
    case="image-cut-off",
)
def an_image_cut_off_among_good_ones(at: Bench) -> Seen:
    images = at.images(3, shape=(20, 24, 22))
    cut_in_half(images / "case_01_0000.nii.gz")
    return others_predicted(at, images / "case_01_0000.nii.gz", images)


@fault(
    STAGE,
    "One of three images is a text file with the name of an image.",
    happens="the case is named, all others are predicted, exit code 3",
    keeps="the label maps of the others",
    code="cases-failed",
    case="image-damaged",
)
def an_image_that_is_none(at: Bench) -> Seen:
    images = at.images(3)
    (images / "case_01_0000.nii.gz").write_text("see the other folder")
    return others_predicted(at, images / "case_01_0000.nii.gz", images)


@fault(
    STAGE,
    "One image is a series in time: it has four dimensions.",
    happens="the case is named, all others are predicted, exit code 3",
    keeps="the label maps of the others",
    code="cases-failed",
    case="channels-count",
)
def a_4d_image(at: Bench) -> Seen:
    images = at.images(3)
    file = images / "case_01_0000.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, *SHAPE), np.float32)), str(file))
    return others_predicted(at, file, images)


@fault(
    STAGE,
    "The two channels of one case have different sizes.",
    happens="the case is named, all others are predicted, exit code 3",
    keeps="the label maps of the others",
    code="cases-failed",
    says="Not all input images have the same shape",
)
def channels_of_different_size(at: Bench) -> Seen:
    images = at.images(3, channels=("CT", "PET"))
    write_image(images / "case_01_0001.nii.gz", np.zeros((3, 4, 5), np.float32), (1, 1, 1))
    return others_predicted(at, images / "case_01_0001.nii.gz", images, channels=("CT", "PET"))


@fault(
    STAGE,
    "One case lacks its second channel.",
    happens="refused, exit code 1",
    keeps="nothing was written",
    code="channels-count",
)
def a_missing_channel(at: Bench) -> Seen:
    images = at.images(3, channels=("CT", "PET"))
    (images / "case_01_0001.nii.gz").unlink()
    return refused(at, *call(at.model(channels=("CT", "PET")), images, at.root / "out"))


@fault(
    STAGE,
    "The input folder is empty.",
    happens="refused, exit code 1",
    keeps="nothing was written",
    code="images-missing",
)
def an_empty_input_folder(at: Bench) -> Seen:
    (at.root / "in").mkdir()
    return refused(at, *call(at.model(), at.root / "in", at.root / "out"))


@fault(
    STAGE,
    "The images end in .nrrd where the model was trained on .nii.gz.",
    happens="refused, exit code 1",
    keeps="nothing was written",
    code="images-missing",
)
def a_wrong_file_ending(at: Bench) -> Seen:
    return renamed(at, ".nii.gz", ".nrrd")


@fault(
    STAGE,
    "The images have no channel number in their names, where the model has two channels.",
    happens="refused, exit code 1",
    keeps="nothing was written",
    code="images-missing",
)
def names_without_a_channel(at: Bench) -> Seen:
    return renamed(at, "_0000", "", channels=("CT", "PET"))


def renamed(at: Bench, old: str, new: str, **model: object) -> Seen:
    images = at.images()
    for file in list(images.iterdir()):
        file.rename(file.with_name(file.name.replace(old, new)))
    return refused(at, *call(at.model(**model), images, at.root / "out"))


@fault(
    STAGE,
    "One image lacks the ending that the model was trained on; it lies beside two that have it.",
    happens="the case is named, all others are predicted, exit code 3",
    keeps="the label maps of the others",
    code="cases-failed",
    says="does not end in .nii.gz",
)
def an_image_left_out(at: Bench) -> Seen:
    images = at.images(3)
    file = images / "case_01_0000.nii.gz"
    file.rename(file.with_name("case_01_0000.nii"))
    return others_predicted(at, file, images)


@fault(
    STAGE,
    "The output folder is the input folder.",
    happens="refused, exit code 1",
    keeps="nothing was written",
    code="output-is-input",
)
def output_into_the_input(at: Bench) -> Seen:
    images = at.images()
    return refused(at, *call(at.model(), images, images))


@fault(
    STAGE,
    "The output folder is a file.",
    happens="refused, exit code 1",
    keeps="nothing was written",
    code="output-not-writable",
)
def output_into_a_file(at: Bench) -> Seen:
    images, model = at.images(), at.model()
    (at.root / "out").write_text("")
    return refused(at, *call(model, images, at.root / "out"))


@fault(
    STAGE,
    "The device does not exist on this machine.",
    happens="refused, exit code 1",
    keeps="nothing was written",
    code="device-missing",
)
def a_wrong_device(at: Bench) -> Seen:
    at.patch.setattr(torch.cuda, "is_available", lambda: False)
    at.patch.setattr(torch.backends.mps, "is_available", lambda: False)
    return refused(at, *call(at.model(), at.images(), at.root / "out", "-device", "cuda"))


@fault(
    STAGE,
    "The fold was not trained.",
    happens="refused, exit code 1",
    keeps="nothing was written",
    code="checkpoint-missing",
)
def a_missing_fold(at: Bench) -> Seen:
    return refused(at, *call(at.model(folds=(0, 1)), at.images(), at.root / "out", "-f", "0", "3"))


@fault(
    STAGE,
    "The model has no checkpoint of the name asked for.",
    happens="refused, exit code 1",
    keeps="nothing was written",
    code="checkpoint-missing",
)
def a_missing_checkpoint(at: Bench) -> Seen:
    return refused(at, *call(at.model(), at.images(), at.root / "out", "-chk", "checkpoint_best.pth"))


@fault(
    STAGE,
    "The model folder's dataset.json is missing.",
    happens="refused, exit code 1",
    keeps="nothing was written",
    code="model-incomplete",
)
def a_model_without_dataset_json(at: Bench) -> Seen:
    model = at.model()
    (model / "dataset.json").unlink()
    return refused(at, *call(model, at.images(), at.root / "out"))


@fault(
    STAGE,
    "The model folder's plans.json is cut off.",
    happens="refused, exit code 1",
    keeps="nothing was written",
    code="json-invalid",
)
def a_model_with_half_a_plan(at: Bench) -> Seen:
    model = at.model()
    cut_in_half(model / "plans.json")
    return refused(at, *call(model, at.images(), at.root / "out"))


@fault(
    STAGE,
    "The checkpoint is cut off.",
    happens="refused, exit code 1",
    keeps="nothing was written",
    code="weights-cut-off",
)
def a_checkpoint_cut_off(at: Bench) -> Seen:
    model = at.model()
    cut_in_half(model / "fold_0" / "checkpoint_final.pth")
    return refused(at, *call(model, at.images(), at.root / "out"))


@fault(
    STAGE,
    "The checkpoint is of a network of another size.",
    happens="refused, exit code 1",
    keeps="nothing was written",
    code="weights-mismatch",
)
def a_checkpoint_of_another_size(at: Bench) -> Seen:
    model = at.model()
    plans = json.loads((model / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"] = [8, 16]
    change_json(model / "plans.json", **plans)
    return refused(at, *call(model, at.images(), at.root / "out"))


@fault(
    STAGE,
    "The checkpoint is one of another model: no weight has a name that the network knows.",
    happens="refused, exit code 1",
    keeps="nothing was written",
    code="weights-mismatch",
)
def a_checkpoint_of_another_model(at: Bench) -> Seen:
    model = at.model()
    file = model / "fold_0" / "checkpoint_final.pth"
    content = torch.load(file, weights_only=False)
    content["network_weights"] = {f"swin.{i}": w for i, w in enumerate(content["network_weights"].values())}
    torch.save(content, file)
    return refused(at, *call(model, at.images(), at.root / "out"))


@fault(
    STAGE,
    "The image is smaller than the patch in every direction.",
    happens="predicted: the network's input is padded, its output cropped",
    keeps="the image's own size",
)
def an_image_smaller_than_the_patch(at: Bench) -> None:
    images = at.images(1, shape=(3, 4, 5))
    code, printed = at.command(*call(at.model(), images, at.root / "out"))
    assert code == 0, printed
    predicted = sitk.ReadImage(str(at.root / "out" / "case_00.nii.gz"))
    assert predicted.GetSize() == (5, 4, 3)


@fault(STAGE, "The image is one slice.", happens="predicted", keeps="the image's own size")
def an_image_of_one_slice(at: Bench) -> None:
    images = at.images(1, shape=(1, 12, 13))
    code, printed = at.command(*call(at.model(), images, at.root / "out"))
    assert code == 0, printed
    assert sitk.ReadImage(str(at.root / "out" / "case_00.nii.gz")).GetSize() == (13, 12, 1)


@fault(
    STAGE,
    "A .nrrd image has a voxel that is NaN.",
    happens="the case is named, all others are predicted, exit code 3",
    keeps="the label maps of the others",
    code="cases-failed",
    says="NaN or infinite",
)
def an_image_with_nan(at: Bench) -> Seen:
    images = at.images(3)
    for file in list(images.iterdir()):
        image = sitk.ReadImage(str(file))
        if "case_01" in file.name:
            image[4, 3, 2] = float("nan")
        sitk.WriteImage(image, str(file).replace(".nii.gz", ".nrrd"))
        file.unlink()
    seen = at.fails(*call(at.model(file_ending=".nrrd"), images, at.root / "out"), exit_code=3)
    assert {file.name for file in (at.root / "out").glob("*.nrrd")} == {"case_00.nrrd", "case_02.nrrd"}
    return seen


@fault(
    STAGE,
    "A NIfTI image has a voxel that is NaN.",
    happens="predicted: SimpleITK reads NaN in NIfTI files as 0",
    keeps="all other voxels",
)
def a_nifti_image_with_nan(at: Bench) -> None:
    def spoil(array: np.ndarray) -> np.ndarray:
        array[2, 3, 4] = np.nan
        return array

    images, model = at.images(1), at.model()
    edit(images / "case_00_0000.nii.gz", spoil)
    stored = np.asanyarray(nib.load(images / "case_00_0000.nii.gz").dataobj)
    code, printed = at.command(*call(model, images, at.root / "out"))
    assert np.isnan(stored).any() and code == 0, printed
    predicted = sitk.GetArrayFromImage(sitk.ReadImage(str(at.root / "out" / "case_00.nii.gz")))
    assert len(np.unique(predicted)) > 1


@fault(
    STAGE,
    "Folders and cases have names with umlauts, Chinese signs, spaces and emoji.",
    happens="predicted",
    keeps="all names",
)
def names_beyond_ascii(at: Bench) -> None:
    images = at.root / "Übung 患者 😀"
    shutil.copytree(at.images(1), images)
    (images / "case_00_0000.nii.gz").rename(images / "Müller 患者_0000.nii.gz")
    model = at.model()
    moved = model.rename(at.root / "模型 ä")
    code, printed = at.command(*call(moved, images, at.root / "Ergebnis ß"))
    assert code == 0, printed
    assert (at.root / "Ergebnis ß" / "Müller 患者.nii.gz").is_file()


@fault(STAGE, "Path and case name are as long as the file system takes.", happens="predicted", keeps="all names")
def very_long_names(at: Bench) -> None:
    folder = at.root
    while len(str(folder)) < 3000:
        folder = folder / ("x" * 200)
    folder.mkdir(parents=True)
    images = shutil.copytree(at.images(1), folder / "in")
    name = "n" * 220
    (images / "case_00_0000.nii.gz").rename(images / f"{name}_0000.nii.gz")
    code, printed = at.command(*call(at.model(), images, folder / "out"))
    assert code == 0, printed
    assert (folder / "out" / f"{name}.nii.gz").is_file()


# Meanwhile


def die_in(step: str, model: Path, images: Path, output: Path) -> None:
    """Predict, and be killed in a step of the second case."""
    from nnunet_fm.inference import export
    from nnunet_fm.inference.predict import predict_folder
    from nnunet_fm.inference.predictor import FMPredictor

    def kill(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if step == "prediction":
        predict = FMPredictor.predict_logits_from_preprocessed_data
        calls: list[int] = []

        def second(self: FMPredictor, data: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            return kill() if len(calls) == 2 else predict(self, data)  # type: ignore[return-value, func-returns-value]

        FMPredictor.predict_logits_from_preprocessed_data = second  # type: ignore[method-assign]
    else:
        replace = os.replace
        export.os.replace = lambda file, to: kill() if "case_01" in str(to) else replace(file, to)  # type: ignore[assignment]
    predict_folder(model, images, output, folds=[0], device=torch.device("cpu"), processes_preprocessing=0,
                   processes_export=0)  # fmt: skip


def killed(at: Bench, step: str) -> None:
    images, model, output = at.images(3), at.model(), at.root / "out"
    code, printed = at.process(die_in, step, model, images, output)
    assert code == -signal.SIGKILL, printed
    assert [file.name for file in output.glob("*.nii.gz")] == ["case_00.nii.gz"]
    assert (output / ".case_01.partial").is_dir() == (step == "export")
    written = (output / "case_00.nii.gz").stat().st_mtime_ns
    code, printed = at.command(*call(model, images, output, "--continue_prediction"))
    assert code == 0 and len(list(output.glob("*.nii.gz"))) == 3, printed
    assert (output / "case_00.nii.gz").stat().st_mtime_ns == written and not list(output.glob(".*.partial"))


@fault(
    STAGE,
    "A prediction is killed (SIGKILL) in the network's part of the second case.",
    happens="--continue_prediction does the rest",
    keeps="the finished label maps; no half-written one has its name",
)
def killed_in_prediction(at: Bench) -> None:
    killed(at, "prediction")


@fault(
    STAGE,
    "A prediction is killed (SIGKILL) while the second label map is put in its place.",
    happens="--continue_prediction does the rest",
    keeps="the finished label maps; no half-written one has its name",
)
def killed_in_export(at: Bench) -> None:
    killed(at, "export")


@fault(
    STAGE,
    "The disk is full when the label maps are written.",
    happens="each case is named, exit code 3",
    keeps="no half-written label map; the same command works later",
    code="cases-failed",
    case="prediction-not-written",
)
def a_full_disk_in_export(at: Bench) -> Seen:
    images, model, output = at.images(2, shape=(56, 60, 58)), at.model(), at.root / "out"
    output.mkdir()
    with at.full_disk(5000):
        seen = at.fails(*call(model, images, output), exit_code=3)
    assert "case_00" in seen.text and "case_01" in seen.text, seen
    assert list(output.glob("*.nii.gz")) == [] and not list(output.glob(".*.partial"))
    code, printed = at.command(*call(model, images, output, "--continue_prediction"))
    assert code == 0 and len(list(output.glob("*.nii.gz"))) == 2, printed
    return seen


@fault(
    STAGE,
    "The output folder is read-only.",
    happens="refused, exit code 1",
    keeps="nothing was written",
    code="output-not-writable",
)
def a_read_only_output(at: Bench) -> Seen:
    images, model, output = at.images(1), at.model(), at.root / "out"
    output.mkdir()
    with at.read_only(output):
        return refused(at, *call(model, images, output))


def with_killed_workers(model: Path, images: Path, output: Path) -> None:
    """Predict with processes that export, each of which is killed as if memory ran out."""
    from nnunet_fm.inference.predict import predict_folder

    def kill() -> None:
        while True:
            for process in active_children():
                process.kill()
            time.sleep(0.01)

    threading.Thread(target=kill, daemon=True).start()
    predict_folder(model, images, output, folds=[0], device=torch.device("cpu"), processes_preprocessing=0,
                   processes_export=1)  # fmt: skip


@fault(
    STAGE,
    "The system kills a process that exports, as it does when memory runs out.",
    happens="stopped",
    keeps="finished label maps",
    code="process-killed",
    slow=True,
)
def an_exporting_process_killed(at: Bench) -> Seen:
    images, model = at.images(2), at.model()
    code, printed = at.process(with_killed_workers, model, images, at.root / "out")
    assert code == 1 and not list((at.root / "out").glob("*.nii.gz")), printed
    return seen_in(next(line for line in printed.splitlines() if line.startswith("Error: ")))
