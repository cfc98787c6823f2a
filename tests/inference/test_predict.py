"""`nnunet-fm predict`: the label maps of nnU-Net; times; failures; errors before any work."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from skimage import io

import nnunet_fm.inference.export as export_module
import nnunet_fm.inference.predict as predict_module
import nnunet_fm.inference.predictor as predictor_module
import nnunet_fm.inference.preprocess as preprocess_module
from nnunet_fm.inference.cases import CaseFailure
from nnunet_fm.inference.predict import PredictionError, default_processes, predict_folder
from nnunet_fm.preprocessing.whole_images import WholeSimpleITKIO
from nnunet_fm.records.prediction import FILE, CaseTimes, PredictionTimes
from tests.end_to_end.test_commands import Venv
from tests.helpers.commands import Command, make_command
from tests.helpers.datasets import write_dataset, write_image
from tests.helpers.errors import assert_refused, fails
from tests.helpers.tiny_models import write_fm_model, write_model

CPU = torch.device("cpu")
SHAPE = (10, 14, 12)
HERE = {"device": CPU, "processes_preprocessing": 0, "processes_export": 0}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """One thread for both predictors: sums of several threads may differ in the last digit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three cases of one channel."""
    folder = write_dataset(tmp_path_factory.mktemp("raw"), 710, shape=SHAPE, cases=0, test_cases=3)
    return folder / "imagesTs"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "nnUNetTrainer__nnUNetPlans__3d_fullres", folds=(0, 1))


@pytest.fixture
def broken(images: Path, tmp_path: Path) -> Path:
    """The three cases, the second cut off in its middle, which SimpleITK does not notice."""
    folder = shutil.copytree(images, tmp_path / "broken")
    file = folder / "case_01_0000.nii.gz"
    file.write_bytes(file.read_bytes()[:2000])
    assert sitk.ReadImage(str(file)).GetSize() == SHAPE[::-1]
    return folder


def stock(model: Path, images: Path, output: Path, folds: Sequence[int], **more: Any) -> Path:
    """What nnU-Net's predictor writes, by its way without processes."""
    output.mkdir()
    predictor = nnUNetPredictor(device=CPU, use_mirroring=more.pop("use_mirroring", True), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), tuple(folds), "checkpoint_final.pth")
    files = sorted(str(file) for file in images.iterdir())  # a folder's name would start twelve processes
    cases = [list(case) for _, case in groupby(files, key=lambda file: file[: file.rindex("_")])]
    predictor.predict_from_files_sequential(cases, str(output), **more)
    return output


def assert_same_labels(one: Path, other: Path, *, labels: int = 1) -> None:
    """Equal in 99.99 % of the union of foregrounds, but for one voxel, and in geometry; of several labels at least.

    Sums of a batch may differ from those of single images in the last digit of float32.
    """
    ours, theirs = (sitk.ReadImage(file) for file in (one, other))
    for property_of in (sitk.Image.GetSpacing, sitk.Image.GetOrigin, sitk.Image.GetDirection, sitk.Image.GetPixelID):
        assert property_of(ours) == property_of(theirs)
    a, b = sitk.GetArrayFromImage(ours), sitk.GetArrayFromImage(theirs)
    assert a.shape == b.shape and (a != b).sum() <= max(1, 1e-4 * ((a > 0) | (b > 0)).sum()), one.name
    assert len(np.unique(a)) >= labels


def assert_same_files(ours: Path, theirs: Path, cases: int, *, labels: int = 2) -> None:
    """Equal names and contents, the record of the call and the times left out."""
    record = "predict_from_raw_data_args.json"
    expected = {path.name for path in theirs.iterdir()} - {record}
    assert {path.name for path in ours.iterdir() if path.name[0] != "."} - {record, FILE} == expected
    assert len([name for name in expected if name.endswith(".nii.gz")]) == cases
    for name in expected:
        if name.endswith(".npz"):
            one, other = (np.load(folder / name)["probabilities"] for folder in (ours, theirs))
            np.testing.assert_allclose(one, other, atol=2e-3)  # logits are kept in half precision
        elif name.endswith(".nii.gz"):
            assert_same_labels(ours / name, theirs / name, labels=labels)
        else:
            assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name


REGIONS = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[int, ...]]] = {
    # model, options of nnU-Net's predictor, folds
    "3d": ({}, {}, (0,)),
    "2d": ({"configuration": "2d"}, {"use_mirroring": False}, (0,)),
    "folds": ({"folds": (0, 1)}, {"save_probabilities": True}, (0, 1)),
    "regions": (
        {"configuration": "2d", "labels": REGIONS, "regions_class_order": [1, 2], "channels": ("MRI", "CT")},
        {"save_probabilities": True},
        (0,),
    ),
}


@pytest.mark.parametrize("kind", MODELS)
def test_label_maps_are_those_of_nnunet(tmp_path: Path, kind: str) -> None:
    arguments, options, folds = MODELS[kind]
    channels = arguments.get("channels", ("MRI",))
    folder = write_dataset(tmp_path, 711, shape=SHAPE, cases=0, test_cases=2, channels=channels, spacing=(2, 1, 1.3))
    model = write_model(tmp_path / "model", **arguments)
    theirs = stock(model, folder / "imagesTs", tmp_path / "theirs", folds, **options)
    mirroring = options.pop("use_mirroring", True)
    times = predict_folder(
        model, folder / "imagesTs", tmp_path / "ours", folds=folds, mirroring=mirroring, **HERE, **options
    )
    assert_same_files(tmp_path / "ours", theirs, cases=2)
    assert list(times.cases) == ["case_00", "case_01"] and times == PredictionTimes.read(tmp_path / "ours")


def test_a_cascade_takes_its_previous_stage(images: Path, tmp_path: Path) -> None:
    first = predict_folder(write_model(tmp_path / "first"), images, tmp_path / "low", folds=[0], **HERE)
    model = write_model(tmp_path / "second", previous_stage="3d_lowres", configuration="3d_cascade_fullres")
    with fails("cascade-missing", "3d_lowres", "-prev_stage_predictions"):
        predict_folder(model, images, tmp_path / "ours", folds=[0], **HERE)
    with fails("cascade-incomplete", "case_00.nii.gz"):
        predict_folder(model, images, tmp_path / "ours", folds=[0], previous_stage=tmp_path, **HERE)
    assert not (tmp_path / "ours").exists()
    theirs = stock(model, images, tmp_path / "theirs", [0], folder_with_segs_from_prev_stage=str(tmp_path / "low"))
    predict_folder(model, images, tmp_path / "ours", folds=[0], previous_stage=tmp_path / "low", **HERE)
    assert_same_files(tmp_path / "ours", theirs, cases=3)
    with fails("cascade-unneeded", "-prev_stage"):
        predict_folder(tmp_path / "first", images, tmp_path / "low", folds=[0], previous_stage=tmp_path, **HERE)
    assert len(first.cases) == 3


@pytest.mark.slow
def test_worker_processes_change_nothing(model: Path, images: Path, broken: Path, tmp_path: Path) -> None:
    theirs = stock(model, images, tmp_path / "theirs", [0, 1], save_probabilities=True)
    processes = {"device": CPU, "processes_preprocessing": 2, "processes_export": 1}
    with pytest.raises(PredictionError, match="case_01.*cut off") as raised:
        predict_folder(model, broken, tmp_path / "ours", folds=[0, 1], save_probabilities=True, **processes)
    for file in theirs.glob("case_01*"):
        file.unlink()
    assert_same_files(tmp_path / "ours", theirs, cases=2)
    cases = raised.value.times.cases.values()
    assert len(cases) == 2 and all(seconds > 0 for case in cases for seconds in case.model_dump().values())


def times_in(printed: str) -> PredictionTimes:
    """The times in what ``--json`` prints."""
    fields = PredictionTimes.model_fields
    return PredictionTimes(**{key: value for key, value in json.loads(printed).items() if key in fields})


@pytest.mark.slow
def test_the_commands_agree(fresh_venv: Venv, images: Path, tmp_path: Path) -> None:
    """On a model of ours, whose preprocessing the worker processes of both must find."""
    model = write_fm_model(tmp_path / "nnunet", "FMPlanner_resnet18", SHAPE, (1.0, 1.0, 1.0))
    (tmp_path / "in").mkdir()
    shutil.copy(images / "case_00_0000.nii.gz", tmp_path / "in")
    options = ("-i", tmp_path / "in", "-m", model, "-f", "0", "-device", "cpu", "-npp", "1", "-nps", "1")
    options = (*options, "--save_probabilities", "--disable_tta")
    env = {"nnUNet_def_n_proc": "1"}  # as many threads at most, in both
    fresh_venv.run("nnUNetv2_predict_from_modelfolder", *options, "-o", tmp_path / "theirs", env=env)
    out = fresh_venv.run("nnunet-fm", "predict", *options, "-o", tmp_path / "ours", "--json", env=env).stdout
    assert_same_files(tmp_path / "ours", tmp_path / "theirs", cases=1, labels=1)
    assert np.load(tmp_path / "ours" / "case_00.npz")["probabilities"].std() > 0
    assert times_in(out) == PredictionTimes.read(tmp_path / "ours")


# Times


def test_every_step_is_timed_apart(model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that only moves while nnU-Net works on a step."""
    seconds = {"reading": 0.5, "preprocessing": 0.25, "inference": 2.0, "export": 8.0}
    now = 100.0

    def takes_time(owner: Any, name: str, step: str) -> None:
        original = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            nonlocal now
            now += seconds[step]
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, timed)

    for clock in (predictor_module, preprocess_module, export_module):
        monkeypatch.setattr(clock, "perf_counter", lambda: now)
    takes_time(WholeSimpleITKIO, "read_images", "reading")
    takes_time(DefaultPreprocessor, "_normalize", "preprocessing")
    takes_time(nnUNetPredictor, "predict_logits_from_preprocessed_data", "inference")
    takes_time(SimpleITKIO, "write_seg", "export")
    times = predict_folder(model, images, tmp_path / "out", folds=[0], cases=["case_01", "case_00"], **HERE)
    assert [case.model_dump() for case in times.cases.values()] == [seconds, seconds]


def test_continued_runs_add_their_times(model: Path, images: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    first = predict_folder(model, images, output, folds=[0], cases=["case_02"], **HERE)
    assert [path.name for path in output.glob("*.nii.gz")] == ["case_02.nii.gz"] and list(first.cases) == ["case_02"]
    written = (output / "case_02.nii.gz").stat().st_mtime_ns
    both = predict_folder(model, images, output, folds=[0], overwrite=False, **HERE)
    assert (output / "case_02.nii.gz").stat().st_mtime_ns == written
    assert list(both.cases) == ["case_00", "case_01", "case_02"] and both.cases["case_02"] == first.cases["case_02"]
    content = json.loads((output / FILE).read_text())
    assert set(content) == {"processor", "device", "threads", "cases"} and (content["device"], content["threads"]) == (
        "cpu",
        1,
    )
    assert predict_folder(model, images, output, folds=[0], overwrite=False, **HERE) == both
    assert not list(output.glob(".*.partial")) and not list(output.glob(f".{FILE}.[0-9]*"))


def test_continued_runs_keep_whole_results_alone(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As nnU-Net leaves them when the disk is full, or as another image of the name had them."""
    output = tmp_path / "out"
    keywords = dict(folds=[0], overwrite=False, save_probabilities=True, **HERE)
    predict_folder(model, images, output, **keywords)
    files = {file: file.read_bytes() for file in output.iterdir() if file.name.endswith((".nii.gz", ".npz"))}
    times = {file: file.stat().st_mtime_ns for file in files}
    predict_folder(model, images, output, **keywords)
    assert times == {file: file.stat().st_mtime_ns for file in files} and "again" not in capsys.readouterr().err
    (output / "case_00.nii.gz").write_bytes(b"")
    sitk.WriteImage(sitk.ReadImage(str(output / "case_01.nii.gz"))[1:], str(output / "case_01.nii.gz"))
    archive = output / "case_02.npz"
    archive.write_bytes(files[archive][:-20])
    predict_folder(model, images, output, **keywords)
    for file, content in files.items():
        if file.suffix == ".npz":
            old, new = (np.load(io_bytes)["probabilities"] for io_bytes in (BytesIO(content), file))
            assert np.array_equal(old, new)
        else:
            assert file.read_bytes() == content
    said = capsys.readouterr().err
    for fault in (
        "case_00 is predicted again: case_00.nii.gz is no NIfTI file, or damaged",
        "case_01 is predicted again: case_01.nii.gz has ",
        "case_02 is predicted again: case_02.npz is damaged or cut off",
    ):
        assert fault in said


def test_times_of_another_machine_are_dropped(tmp_path: Path) -> None:
    case = CaseTimes(reading=1, preprocessing=2, inference=3, export=4)
    laptop = PredictionTimes(processor="A", device="cpu", threads=2, cases={"a": case})
    laptop.add_to(tmp_path)
    other = case.model_copy(update={"inference": 7.0})
    assert list(laptop.model_copy(update={"cases": {"b": other}}).add_to(tmp_path).cases) == ["a", "b"]
    summary = PredictionTimes.read(tmp_path)
    assert summary is not None and "2 cases" in summary.summary() and "inference 5.00" in summary.summary()
    cluster = PredictionTimes(processor="B", device="cpu", threads=2, cases={"c": case})
    assert list(cluster.add_to(tmp_path).cases) == ["c"] and PredictionTimes.read(tmp_path) == cluster
    (tmp_path / FILE).write_text("{}")
    with fails("json-content"):
        PredictionTimes.read(tmp_path)


def test_parts_share_a_folder(model: Path, images: Path, tmp_path: Path) -> None:
    for part in (0, 1):
        times = predict_folder(model, images, tmp_path / "out", folds=[0], num_parts=2, part_id=part, **HERE)
        assert list(times.cases) == [["case_00", "case_02"], ["case_00", "case_01", "case_02"]][part]


def test_lists_of_files_under_names_of_their_own(model: Path, images: Path, tmp_path: Path) -> None:
    """As a study predicts the validation cases of a fold."""
    theirs = stock(model, images, tmp_path / "theirs", [0])
    files = [[images / "case_02_0000.nii.gz"], [images / "case_00_0000.nii.gz"]]
    done: dict[str, object] = {}
    moved: list[tuple[float, int]] = []
    predict_folder(
        model, files, tmp_path / "out", folds=[0], cases=["Fall_ä", "b"], **HERE,
        on_case=done.__setitem__, on_progress=lambda *where: moved.append(where),
    )  # fmt: skip
    for ours, name in (("Fall_ä", "case_02"), ("b", "case_00")):
        assert_same_labels(tmp_path / "out" / f"{ours}.nii.gz", theirs / f"{name}.nii.gz")
    assert list(done) == ["Fall_ä", "b"] and all(isinstance(times, CaseTimes) for times in done.values())
    fractions = [fraction for fraction, total in moved]
    assert fractions == sorted(fractions) and fractions[-1] == 2 and len(set(fractions)) >= 4
    predict_folder(model, files[:1], tmp_path / "plain", folds=[0], **HERE)
    assert (tmp_path / "plain" / "case_02.nii.gz").is_file()


# Failures


def test_a_case_that_fails_leaves_the_others_alone(model: Path, broken: Path, images: Path, tmp_path: Path) -> None:
    theirs = stock(model, images, tmp_path / "theirs", [0])
    results: dict[str, object] = {}
    with fails("cases-failed", "case_01") as raised:
        predict_folder(model, broken, tmp_path / "out", folds=[0], **HERE, on_case=results.__setitem__)
    assert list(raised.value.failed) == ["case_01"] and isinstance(results["case_01"], CaseFailure)
    assert list(raised.value.times.cases) == ["case_00", "case_02"]
    assert not list((tmp_path / "out").glob("*case_01*"))
    for name in ("case_00.nii.gz", "case_02.nii.gz"):
        assert_same_labels(tmp_path / "out" / name, theirs / name)


def test_a_result_that_cannot_be_written_fails_alone(
    model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock_write = SimpleITKIO.write_seg

    def full(self: Any, seg: Any, name: str, properties: Any) -> None:
        stock_write(self, seg, name, properties)
        if "case_00" in name:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(SimpleITKIO, "write_seg", full)
    with fails("cases-failed"):
        predict_folder(model, images, tmp_path / "out", folds=[0], save_probabilities=True, **HERE)
    names = sorted(path.name for path in (tmp_path / "out").iterdir() if "case" in path.name)
    assert names == [f"case_0{i}.{ending}" for i in (1, 2) for ending in ("nii.gz", "npz", "pkl")]


def test_the_reader_s_own_words_are_the_reason(tmp_path: Path) -> None:
    """Where channels differ in size nnU-Net prints why, and raises an error without a message."""
    folder = write_dataset(tmp_path, 712, shape=SHAPE, cases=0, test_cases=2, channels=("MRI", "CT")) / "imagesTs"
    write_image(folder / "case_00_0001.nii.gz", np.zeros((3, 4, 5), np.float32), (1, 1, 1))
    model = write_model(tmp_path / "model", channels=("MRI", "CT"))
    with fails("cases-failed", "case_00", "ERROR"):
        predict_folder(model, folder, tmp_path / "out", folds=[0], **HERE)
    assert (tmp_path / "out" / "case_01.nii.gz").is_file()


# What a user can get wrong: nothing is written


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"folds": (0, 1, 2, 3, 4)}, ("checkpoint-missing", "2", "3", "4", "0", "1", "-f")),
        ({"checkpoint": "checkpoint_best.pth"}, ("checkpoint-missing", "-chk", "checkpoint_final.pth")),
        ({"cases": ["case_3"]}, ("case-unknown", "case_3", "case_0")),
        ({"num_parts": 2, "part_id": 2}, ("option-value", "0")),
        ({"tile_step_size": 1.2}, ("option-value", "-step_size", "1.2")),
        ({"device": torch.device("meta")}, ("device-missing",)),
    ],
)
def test_wrong_arguments(
    model: Path, images: Path, tmp_path: Path, arguments: dict[str, Any], expected: tuple[str, ...]
) -> None:
    with fails(*expected):
        predict_folder(model, images, tmp_path / "out", **{"folds": [0], **HERE, **arguments})
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_the_device_is_looked_for(model: Path, images: Path, tmp_path: Path) -> None:
    with fails("device-missing", "-device"):
        predict_folder(model, images, tmp_path / "out", folds=[0])


def test_wrong_folders(model: Path, images: Path, tmp_path: Path) -> None:
    for wrong in (model / "fold_0", tmp_path / "no"):
        with fails("model-incomplete", wrong):
            predict_folder(wrong, images, tmp_path / "out", folds=[0], **HERE)
    for wrong, code in ((tmp_path / "no", "input-missing"), (tmp_path, "images-missing")):
        with fails(code, wrong):
            predict_folder(model, wrong, tmp_path / "out", folds=[0], **HERE)
    with fails("output-is-input"):
        predict_folder(model, images, images, folds=[0], **HERE)
    with fails("output-not-writable"):
        predict_folder(model, images, images / "case_00_0000.nii.gz", folds=[0], **HERE)
    with fails("input-missing"):
        predict_folder(model, [[tmp_path / "x_0000.nii.gz"]], tmp_path / "out", folds=[0], **HERE)
    with fails("case-twice"):
        predict_folder(model, [[images / "case_00_0000.nii.gz"]] * 2, tmp_path, cases=["a"] * 2, folds=[0], **HERE)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a_0000.nii.gz", "a.nii.gz"], ("image-twice", "a.nii.gz", "a_0000.nii.gz")),
        (["case_00_0000.nrrd"], ("images-missing", "case_00_0000.nrrd", "nii.gz")),
        (["readme.txt"], ("images-missing", "nii.gz", "readme.txt")),
        (["a_0000.nii.gz", "a_0001.nii.gz"], ("channels-count", "0000", "MRI", "0001")),
        (["a_2023.nii.gz", "b_0000.nii.gz"], ("channels-count", "1", "a_2023_0000.nii.gz")),
    ],
)
def test_wrong_names_of_images(
    model: Path, images: Path, tmp_path: Path, names: list[str], expected: tuple[str, ...]
) -> None:
    (tmp_path / "in").mkdir()
    for name in (*names, ".hidden_0000.nii.gz"):
        shutil.copy(images / "case_00_0000.nii.gz", tmp_path / "in" / name)
    with fails(*expected):
        predict_folder(model, tmp_path / "in", tmp_path / "out", folds=[0], **HERE)


LEFT_OUT = {
    "c_0000.nii": r"c_0000.nii \(does not end in .nii.gz",
    "d_0000.NII.GZ": r"d_0000.NII.GZ \(ends in .NII.GZ, not in .nii.gz: rename it",
    "e_\n_0000.nii.gz": r"'e_\\n_0000.nii.gz' \(a line break",
    "link_0000.nii.gz": r"link_0000.nii.gz \(a link to a file that is not there",
    "more": r"more \(a folder: move its images, such as f_0000.nii.gz",
}
"""What lies beside images -> how it is named."""
SILENT = ("readme.txt", "a_0000.nii.gz.md5", "notes/list.csv", "._a_0000.nii.gz", ".DS_Store")


def with_left_out(folder: Path, images: Path) -> Path:
    """A folder of images, and all of `LEFT_OUT` and `SILENT` beside them."""
    shutil.copytree(images, folder)
    (folder / "more").mkdir()
    (folder / "notes").mkdir()
    for name in ("c_0000.nii", "d_0000.NII.GZ", "e_\n_0000.nii.gz", "more/f_0000.nii.gz", *SILENT):
        (folder / name).write_bytes(b"x")
    (folder / "link_0000.nii.gz").symlink_to(folder / "gone_0000.nii.gz")
    return folder


def test_files_that_are_no_cases_are_named_and_the_others_predicted(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = with_left_out(tmp_path / "in", images)
    with fails("cases-failed", "5") as raised:
        predict_folder(model, folder, tmp_path / "out", folds=[0], **HERE)
    for told in (str(raised.value), capsys.readouterr().err):
        assert all(re.search(words, told) for words in LEFT_OUT.values()) and not any(name in told for name in SILENT)
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 3 and len(raised.value.times.cases) == 3
    predict_folder(model, folder, tmp_path / "chosen", folds=[0], cases=["case_00"], **HERE)  # left out on purpose


def test_a_model_of_one_channel_needs_no_number(model: Path, images: Path, tmp_path: Path) -> None:
    """And takes a single file, as one of several channels does with the files beside it."""
    (tmp_path / "in").mkdir()
    plain = shutil.copy(images / "case_00_0000.nii.gz", tmp_path / "in" / "scan.v2.nii.gz")
    shutil.copy(images / "case_01_0000.nii.gz", tmp_path / "in")
    assert list(predict_folder(model, tmp_path / "in", tmp_path / "out", folds=[0], **HERE).cases) == [
        "case_01", "scan.v2",
    ]  # fmt: skip
    predict_folder(model, plain, tmp_path / "one", folds=[0], **HERE)
    assert [file.name for file in (tmp_path / "one").glob("*.nii.gz")] == ["scan.v2.nii.gz"]
    (tmp_path / "in" / "case_01_0000.nii.gz").unlink()
    two = write_model(tmp_path / "two", channels=("MRI", "CT"))
    with fails("images-missing", "scan.v2.nii.gz", "scan.v2_0000.nii.gz"):
        predict_folder(two, tmp_path / "in", tmp_path / "out2", folds=[0], **HERE)
    with fails("channel-number", "scan.v2_0000.nii.gz"):
        predict_folder(two, plain, tmp_path / "out2", folds=[0], **HERE)
    with fails("image-ending", "nii.gz"):
        predict_folder(model, shutil.copy(plain, tmp_path / "scan.nii"), tmp_path / "out2", folds=[0], **HERE)
    for channel in range(2):
        shutil.copy(images / "case_00_0000.nii.gz", tmp_path / "in" / f"a_{channel:04d}.nii.gz")
    predict_folder(two, tmp_path / "in" / "a_0001.nii.gz", tmp_path / "out2", folds=[0], **HERE)
    assert (tmp_path / "out2" / "a.nii.gz").is_file()


def test_files_may_hold_several_channels(tmp_path: Path) -> None:
    """As colour images do: three in one file."""
    model = write_model(
        tmp_path / "model", configuration="2d", channels=("R", "G", "B"), reader="NaturalImage2DIO",
        transpose=(0, 1, 2), file_ending=".png",
    )  # fmt: skip
    folder = tmp_path / "in"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for case in "ab":
        io.imsave(folder / f"{case}_0000.png", rng.integers(0, 255, (20, 16, 3), np.uint8), check_contrast=False)
    theirs = stock(model, folder, tmp_path / "theirs", [0])
    assert list(predict_folder(model, folder, tmp_path / "out", folds=[0], **HERE).cases) == ["a", "b"]
    for name in ("a.png", "b.png"):
        assert_same_labels(tmp_path / "out" / name, theirs / name)
    io.imsave(folder / "b_0000.png", rng.integers(0, 255, (20, 16), np.uint8), check_contrast=False)
    with fails("cases-failed", "1", "3"):
        predict_folder(model, folder, tmp_path / "out", folds=[0], **HERE)
    with fails("channels-count", "1"):
        predict_folder(model, [[folder / "b_0000.png"]], tmp_path / "out", folds=[0], **HERE)


def test_processes_follow_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {1: (0, 0), 2: (0, 0), 3: (1, 1), 6: (2, 2), 7: (3, 3), 64: (3, 3)}
    for cores, processes in expected.items():
        monkeypatch.setattr(predict_module, "usable_cores", lambda cores=cores: cores)
        assert default_processes(10) == processes and default_processes(1) == (0, 0)
    monkeypatch.setenv("nnUNet_npp", "5")
    assert default_processes(10) == (5, 3)


def test_threads_are_all_cores_unless_the_user_says(
    model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("nnunet_fm.cpu.limits.usable_cores", lambda: 3)
    used: list[int] = []
    predict_folder(
        model, images, tmp_path / "out", folds=[0], cases=["case_00"], **HERE,
        on_progress=lambda *_: used.append(torch.get_num_threads()),
    )  # fmt: skip
    times = PredictionTimes.read(tmp_path / "out")
    assert set(used) == {3} and times is not None and times.threads == 3 and torch.get_num_threads() == 1


# The command


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return make_command(monkeypatch, capsys)


def test_the_command_finds_the_model_and_prints_times(
    command: Command,
    model: Path,
    images: Path,
    broken: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results = tmp_path / "results"
    monkeypatch.setenv("nnUNet_results", str(results))
    shutil.copytree(model, results / "Dataset710_Blobs" / model.name)
    base = ("predict", "-i", str(images), "-o", str(tmp_path / "out"), "-device", "cpu", "-npp", "0", "-nps", "0")
    code, out, err = command(*base, "-d", "710", "-c", "3d_fullres", "-f", "0", "1", "--cases", "case_00", "case_02")
    assert code == 0, err
    assert out.splitlines()[-1].startswith("2 cases, median seconds: reading 0.")
    code, out, err = command(*base, "-m", str(model), "-f", "0", "1", "--c", "--json")
    assert code == 0 and times_in(out) == PredictionTimes.read(tmp_path / "out")
    assert list(json.loads(out)["cases"]) == ["case_00", "case_01", "case_02"] and "case_01 done" in err
    theirs = stock(model, images, tmp_path / "theirs", [0, 1])
    assert_same_files(tmp_path / "out", theirs, cases=3)

    code, out, err = command(*base, "-i", str(broken), "-o", str(tmp_path / "two"), "-m", str(model), "-f", "0")
    assert code == 3 and out.splitlines()[-1].startswith("2 cases, median") and "Traceback" not in err
    assert err.splitlines()[-1].startswith("nnunet-fm: 1 case failed: case_01 (")
    code, _, err = command(*base, "-d", "710", "-c", "2d")
    assert code == 1
    assert_refused(err, "model-missing", "-tr nnUNetTrainer -p nnUNetPlans -c 3d_fullres")
    code, _, err = command(*base, "-d", "711", "-c", "2d")
    assert code == 1
    assert_refused(err, "dataset-missing", 711)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), ("option-incomplete", "-d", "-m")),
        (("-m", "x", "-d", "1"), ("option-conflict", "-d")),
        (("-m", "x", "-f", "zero"), ("option-value", "-f", "zero")),
        (("-m", "x", "-device", "cuda:1"), ("option-value", "-device", "cuda:1", "CUDA_VISIBLE_DEVICES")),
        (("-m", "x", "-step_size", "0"), ("option-value", "-step_size", "0.0")),
        (("-m", "x", "-part_id", "1"), ("option-value", "-part_id", "1")),
    ],
)
def test_bad_usage(command: Command, tmp_path: Path, arguments: tuple[str, ...], expected: tuple[str, ...]) -> None:
    code, _, err = command("predict", "-i", str(tmp_path), "-o", str(tmp_path / "out"), *arguments)
    assert code == 2
    assert_refused(err, *expected)
