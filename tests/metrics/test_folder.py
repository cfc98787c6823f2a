"""Folders of predictions against nnU-Net's own scores, their tables and means."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from nnunetv2.evaluation import evaluate_predictions
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from scipy import ndimage
from skimage.io import imsave

from nnunet_fm.dataset_conversion.demo import unpack
from nnunet_fm.metrics.case import default_slice_axis
from nnunet_fm.metrics.folder import evaluate_folder
from nnunet_fm.metrics.label_map import read_label_map
from nnunet_fm.metrics.labels import foreground
from nnunet_fm.metrics.scores_table import COLUMNS, SLICE, read_scores, write_scores
from nnunet_fm.metrics.summary import (
    mean_foreground,
    mean_per_class,
    per_case,
    summarise,
    volume_scores,
)
from tests.helpers.errors import fails
from tests.helpers.images import write_volume


@pytest.fixture(scope="module")
def hippocampus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Real references, predictions made of them, and the dataset: one is moved, one worn, one perfect, one empty."""
    folder = tmp_path_factory.mktemp("hippocampus")
    dataset = unpack(folder, 904)
    references, predictions = folder / "references", folder / "predictions"
    files = sorted((dataset / "labelsTs").iterdir())[:4]
    distortions: list[Callable[[np.ndarray], np.ndarray]] = [
        lambda a: np.roll(a, 2, axis=2),
        lambda a: np.where(ndimage.binary_erosion(a > 0), 3 - a, 0) * (a > 0),
        lambda a: a,
        lambda a: a * 0,
    ]
    generator = np.random.default_rng(0)
    for file, distort in zip(files, distortions, strict=True):
        image = sitk.ReadImage(str(file))
        array = sitk.GetArrayFromImage(image)
        predicted = distort(array).astype(np.uint8)
        array[generator.random(array.shape) < 0.1] = 3  # the ignore label of some of the tests below
        write_volume(references / file.name, array)
        write_volume(predictions / file.name, predicted)
    return predictions, references, dataset


@pytest.mark.parametrize(
    "labels",
    [
        {"background": 0, "anterior": 1, "posterior": 2},
        {"background": 0, "anterior": 1, "posterior": 2, "never": 7, "ignore": 3},
        {"background": 0, "both": [1, 2], "posterior": 2, "ignore": 3},
        {"background": 0, "all": [1, 2, 3], "back": [2, 3], "last": 3},
    ],
    ids=["labels", "ignore", "regions-ignore", "regions"],
)
@pytest.mark.filterwarnings("ignore:labels .3. are no class")
def test_overlap_is_nnunets(hippocampus: tuple[Path, Path, Path], labels: dict[str, int | list[int]]) -> None:
    """Of every case and class, and their means, to 1e-6."""
    predictions, references, _ = hippocampus
    scores = evaluate_folder(predictions, references, labels, metrics=["Dice", "Jaccard"])
    assert list(scores.columns) == COLUMNS
    classes, ignore = foreground(labels)
    stock = _stock(predictions, references, list(classes.values()), ignore)
    for name, values in classes.items():
        for metric, theirs in (("Dice", "Dice"), ("Jaccard", "IoU")):
            mine = scores[(scores["class"] == name) & (scores["metric"] == metric)].set_index("case")["value"]
            for case in stock["metric_per_case"]:
                expected = case["metrics"][values][theirs]
                value = mine[Path(case["reference_file"]).name.removesuffix(".nii.gz")]
                assert value == pytest.approx(expected, abs=1e-6, nan_ok=True)
            mean = mean_per_class(scores, metric)[name]
            assert mean == pytest.approx(stock["mean"][values][theirs], abs=1e-6, nan_ok=True)
    for metric, theirs in (("Dice", "Dice"), ("Jaccard", "IoU")):
        if not math.isnan(stock["foreground_mean"][theirs]):
            assert mean_foreground(scores, metric) == pytest.approx(stock["foreground_mean"][theirs], abs=1e-6)
    assert 0 < scores["value"].mean() < 1


def _stock(predictions: Path, references: Path, classes: list[tuple[int, ...]], ignore: int | None) -> dict[str, Any]:
    """What ``nnUNetv2_evaluate_folder`` computes, in this process: it would start others for every test."""

    class Pool:
        def __init__(self, processes: int) -> None:
            pass

        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda *_: None  # noqa: E731
        starmap = staticmethod(lambda function, tasks: [function(*task) for task in tasks])

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of a class that no case has
        patch.setattr(evaluate_predictions.multiprocessing, "get_context", lambda kind: SimpleNamespace(Pool=Pool))
        return evaluate_predictions.compute_metrics_on_folder(
            str(references), str(predictions), None, SimpleITKIO(), ".nii.gz", classes, ignore, 1
        )


def test_background_and_smoothed(hippocampus: tuple[Path, Path, Path]) -> None:
    predictions, references, _ = hippocampus
    labels = {"background": 0, "anterior": 1, "posterior": 2, "never": 7, "ignore": 3}
    scores = evaluate_folder(
        predictions, references, labels, metrics=["Dice"], include_background=True, empty="smoothed"
    )
    table = per_case(scores)
    assert list(table.columns) == ["background", "anterior", "posterior", "never"] and (table["never"] == 1).all()
    for case, row in table.iterrows():
        arrays = [sitk.GetArrayFromImage(sitk.ReadImage(str(f / f"{case}.nii.gz"))) for f in (references, predictions)]
        here, there = (np.where(arrays[0] == 3, 99, array) for array in arrays)
        for name, value in (("background", 0), ("anterior", 1)):
            both = np.count_nonzero((here == value) & (there == value))
            sizes = np.count_nonzero(here == value) + np.count_nonzero(there == value)
            assert row[name] == pytest.approx((2 * both + 1) / (sizes + 1), abs=1e-12)
    assert mean_foreground(scores) == pytest.approx(table.drop(columns="background").mean().mean())
    assert set(scores.loc[scores["class"] == "background", "size_group"]) == {""}


def test_slices_add_up_to_the_volume(hippocampus: tuple[Path, Path, Path]) -> None:
    predictions, references, _ = hippocampus
    labels = {"background": 0, "anterior": 1, "posterior": 2, "ignore": 3}
    metrics = ["Dice", "Jaccard", "HD95", "volume_reference"]
    scores = evaluate_folder(predictions, references, labels, metrics=metrics, per_slice=True, slice_axis=2)
    whole = evaluate_folder(predictions, references, labels, metrics=metrics)
    assert list(scores.columns) == [*COLUMNS, SLICE]
    pd.testing.assert_frame_equal(volume_scores(scores)[COLUMNS].reset_index(drop=True), whole)
    assert mean_foreground(scores) == mean_foreground(whole)
    slices = scores[scores[SLICE].notna()]
    assert set(slices["metric"]) == {"Dice", "Jaccard"}
    for case in slices["case"].unique():
        arrays = [sitk.GetArrayFromImage(sitk.ReadImage(str(f / f"{case}.nii.gz"))) for f in (references, predictions)]
        counted = arrays[0] != 3
        here, there = ((array == 1) & counted for array in arrays)
        mine = slices[(slices["case"] == case) & (slices["class"] == "anterior") & (slices["metric"] == "Dice")]
        assert mine[SLICE].tolist() == list(range(here.shape[2]))
        sizes = (here.sum((0, 1)) + there.sum((0, 1))).astype(float)
        expected = 2 * (here & there).sum((0, 1)) / np.where(sizes, sizes, np.nan)
        np.testing.assert_allclose(mine["value"], expected)


@pytest.mark.parametrize(
    ("spacing", "axis"),
    [((1, 1, 1), 0), ((0.5, 0.5, 3), 2), ((1, 3, 1), 1), ((1, 2, 2), 0), ((1.001, 1, 1.002), 0), ((1, 1), 0)],
)
def test_slices_lie_across_the_largest_spacing(spacing: tuple[float, ...], axis: int) -> None:
    assert default_slice_axis(spacing) == axis


def test_processes_change_nothing(hippocampus: tuple[Path, Path, Path]) -> None:
    predictions, references, _ = hippocampus
    labels = {"background": 0, "anterior": 1, "posterior": 2, "ignore": 3}
    seen: list[tuple[int, int]] = []
    scores = evaluate_folder(
        predictions,
        references,
        labels,
        metrics=["Dice"],
        processes=2,
        progress=lambda done, of: seen.append((done, of)),
    )
    pd.testing.assert_frame_equal(scores, evaluate_folder(predictions, references, labels, metrics=["Dice"]))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    (damaged := references.parent / "damaged").mkdir(exist_ok=True)
    for file in references.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes()[:-300])
    with fails("image-cut-off", "nii.gz"):
        evaluate_folder(predictions, damaged, labels, processes=2)


def test_means_leave_out_what_is_undefined() -> None:
    nan = float("nan")
    values = {"organ": [0.5, nan, 0.7], "tumour": [nan, nan, 0.2], "never": [nan, nan, nan], "background": [1, 1, 1]}
    scores = pd.DataFrame(
        [(f"{i}", c, "<1 %", "Dice", v) for c, column in values.items() for i, v in enumerate(column)], columns=COLUMNS
    )
    means = mean_per_class(scores)
    assert list(means.index) == list(values) and means["organ"] == pytest.approx(0.6) and math.isnan(means["never"])
    assert mean_foreground(scores) == pytest.approx((0.6 + 0.2) / 2)
    summary = summarise(scores).set_index("class")
    assert summary.loc["organ", "sd"] == pytest.approx(math.sqrt(0.02)) and summary["n"].tolist() == [2, 1, 0, 3]
    assert math.isnan(mean_foreground(scores, "HD95"))


def test_bad_folders_are_named_before_anything_is_scored(tmp_path: Path) -> None:
    labels = {"background": 0, "organ": 1}
    for case in ("a", "ö", "c"):
        for kind in ("p", "r"):
            write_volume(tmp_path / kind / f"{case}.nii.gz", np.ones((4, 5, 6), np.uint8))
    folders = tmp_path / "p", tmp_path / "r"
    assert set(evaluate_folder(*folders, labels, metrics=["Dice"])["case"]) == {"a", "ö", "c"}
    (tmp_path / "p" / "ö.nii.gz").rename(tmp_path / "p" / "x.nii.gz")
    with fails("predictions-missing", "1", "3", "ö.nii.gz"):
        evaluate_folder(*folders, labels)
    assert set(evaluate_folder(*folders, labels, cases=["a"])["case"]) == {"a"}
    with fails("predictions-missing", "x.nii.gz"):
        evaluate_folder(*folders, labels, cases=["x"])
    with fails("references-missing"):
        evaluate_folder(*folders, labels, file_ending=".png")
    with fails("folder-missing"):
        evaluate_folder(tmp_path / "q", tmp_path / "r", labels)
    with fails("metric-unknown", "F1"):
        evaluate_folder(*folders, labels, metrics=["F1"])
    with fails("classes-none"):
        evaluate_folder(*folders, {"background": 0})


@pytest.mark.parametrize(
    ("array", "spacing", "expected"),
    [
        (np.ones((4, 5, 7), np.uint8), (1, 1, 1), ("grid-differs", "a.nii.gz", "4", "5", "7", "6")),
        (np.ones((4, 5, 6), np.uint8), (1, 1, 2), ("grid-differs", "a.nii.gz", "2.0", "1.0")),
        (np.full((4, 5, 6), 0.5, np.float32), (1, 1, 1), ("labels-fraction", "a.nii.gz", "0.5")),
        (np.full((4, 5, 6), np.nan), (1, 1, 1), ("labels-fraction", "a.nii.gz")),
    ],
    ids=["size", "spacing", "probabilities", "nan"],
)
def test_a_prediction_that_cannot_be_compared_is_named(
    tmp_path: Path, array: np.ndarray, spacing: tuple[float, float, float], expected: tuple[str, ...]
) -> None:
    write_volume(tmp_path / "r" / "a.nii.gz", np.ones((4, 5, 6), np.uint8))
    write_volume(tmp_path / "p" / "a.nii.gz", array, spacing)
    with fails(*expected):
        evaluate_folder(tmp_path / "p", tmp_path / "r", {"background": 0, "organ": 1})


def test_warns_of_strange_labels_and_of_another_place(tmp_path: Path) -> None:
    write_volume(tmp_path / "r" / "a.nii.gz", np.ones((4, 5, 6), np.uint8))
    predicted = np.ones((4, 5, 6), np.int16)
    predicted[0, 0, 0], predicted[0, 0, 1] = 300, -2
    image = sitk.GetImageFromArray(predicted)
    image.SetOrigin((0, 5, 0))
    (tmp_path / "p").mkdir()
    sitk.WriteImage(image, str(tmp_path / "p" / "a.nii.gz"))
    with pytest.warns(UserWarning) as caught:
        scores = evaluate_folder(tmp_path / "p", tmp_path / "r", {"background": 0, "organ": 1}, metrics=["Dice"])
    assert ["[-2, 300]" in str(w.message) or "origin" in str(w.message) for w in caught] == [True, True]
    assert scores["value"].tolist() == [pytest.approx(2 * 118 / 238)]


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32, np.float64])
@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha", ".gipl"])
def test_every_format_is_read_as_nnunet_reads_it(tmp_path: Path, ending: str, kind: type) -> None:
    array = np.random.default_rng(0).integers(0, 4, (4, 5, 6))
    file = write_volume(tmp_path / f"a{ending}", array.astype(kind), (0.5, 0.75, 3))
    read = read_label_map(file)
    stock, properties = SimpleITKIO().read_seg(str(file))
    assert np.array_equal(read.array, stock[0]) and read.array.dtype.kind in "iu"
    assert read.spacing == pytest.approx(properties["spacing"]) == (3, 0.75, 0.5)


def test_pictures_and_tiff_are_read(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 4, (5, 6)).astype(np.uint8)
    for ending in (".png", ".bmp", ".tif"):
        imsave(tmp_path / f"a{ending}", array, check_contrast=False)
        read = read_label_map(tmp_path / f"a{ending}")
        assert np.array_equal(read.array, array) and read.spacing == (1, 1)
    volume = np.stack([array, array + 1, array])
    imsave(tmp_path / "b.tif", volume, check_contrast=False)
    assert read_label_map(tmp_path / "b.tif").spacing == (1, 1, 1)
    (tmp_path / "b.json").write_text('{"spacing": [3, 0.5, 0.5]}')
    read = read_label_map(tmp_path / "b.tif")
    assert np.array_equal(read.array, volume) and read.spacing == (3, 0.5, 0.5)
    imsave(tmp_path / "c.png", np.zeros((5, 6, 3), np.uint8), check_contrast=False)
    with fails("image-damaged", "c.png", "3"):
        read_label_map(tmp_path / "c.png")
    (tmp_path / "d.png").write_text("no image")
    with fails("image-damaged", "d.png", "BMP"):
        read_label_map(tmp_path / "d.png")


def test_2d_images_in_a_folder(tmp_path: Path) -> None:
    """A PNG, and the same as NIfTI in 2D and as a volume of one slice: the same scores."""
    array, predicted = np.zeros((2, 20, 30), np.uint8)
    array[5:10, 5:15], predicted[5:10, 8:18] = 1, 1
    tables = []
    for ending, write_2d in (
        (".png", lambda path, a: imsave(path, a, check_contrast=False)),
        (".nii.gz", lambda path, a: sitk.WriteImage(sitk.GetImageFromArray(a), str(path))),
        (".nii", lambda path, a: sitk.WriteImage(sitk.GetImageFromArray(a[None]), str(path))),
    ):
        for kind, labels in (("r", array), ("p", predicted)):
            (tmp_path / kind).mkdir(exist_ok=True)
            write_2d(tmp_path / kind / f"a{ending}", labels)
        found = evaluate_folder(
            tmp_path / "p", tmp_path / "r", {"background": 0, "x": 1}, file_ending=ending, per_slice=True
        )
        tables.append(found)
    pd.testing.assert_frame_equal(tables[0], tables[1])
    pd.testing.assert_frame_equal(tables[0], tables[2])
    values = volume_scores(tables[0]).set_index("metric")["value"]
    assert (values["Dice"], values["HD95"], values["volume_reference"]) == (0.7, 3, 0.05)
    assert tables[0].loc[tables[0][SLICE].notna(), "value"].tolist() == [0.7, 35 / 65]


def test_scores_survive_their_file(tmp_path: Path) -> None:
    scores = pd.DataFrame(
        [("01", "NA", "<1 %", "Dice", 1 / 3), ("02", "NA", "", "HD95", float("nan"))], columns=COLUMNS
    )
    sliced = scores.assign(**{SLICE: pd.array([None, 3], dtype="Int64")})
    for table in (scores, sliced):
        write_scores(table, tmp_path / "scores.csv")
        pd.testing.assert_frame_equal(read_scores(tmp_path / "scores.csv"), table)
