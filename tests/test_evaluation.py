"""Dice against nnU-Net's own, the log reader, overlays and the page."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from nnunetv2.evaluation.evaluate_predictions import compute_metrics, region_or_label_to_mask
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunet_fm.evaluation.dice import dice_scores, foreground, mean_foreground, mean_per_class
from nnunet_fm.evaluation.overlay import overlay_figure
from nnunet_fm.evaluation.page import learning_curve, write_page
from nnunet_fm.evaluation.training_log import newest_log, parse_log

LABELS = {"background": 0, "organ": [1, 2, 3], "tumour": 2, "never": 7, "ignore": 9}
LOG = """
2026-11-22 04:09:02.598007: Epoch {epoch}
2026-11-22 04:09:02.598007: Current learning rate: 0.001
2026-11-22 04:09:02.598007: train_loss {loss}
2026-11-22 04:09:02.598007: val_loss -0.25
2026-11-22 04:09:02.598007: Pseudo dice [np.float32(0.8), np.float32(nan), 0.6]
2026-11-22 04:09:02.598007: Epoch time: {seconds} s
2026-11-22 04:09:02.598007: Yayy! New best EMA pseudo Dice: 0.7
"""


def write(path: Path, array: np.ndarray, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Path:
    """An image from an array (Z, Y, X) and a spacing (x, y, z) in mm."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path))
    return path


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Predictions and references of three cases; the last has no foreground at all."""
    generator = np.random.default_rng(0)
    for case in ("a", "b"):
        for folder in ("predictions", "references"):
            labels = generator.choice([0, 0, 1, 2, 3] + [9] * (folder == "references"), size=(6, 7, 8))
            write(tmp_path / folder / f"{case}.nii.gz", labels.astype(np.uint8))
    for folder in ("predictions", "references"):
        write(tmp_path / folder / "empty.nii.gz", np.zeros((6, 7, 8), np.uint8))
    return tmp_path / "predictions", tmp_path / "references"


def test_dice_is_nnunets(folders: tuple[Path, Path]) -> None:
    predictions, references = folders
    scores = dice_scores(predictions, references, LABELS)
    assert list(scores.columns) == ["case", "class", "metric", "value"] and len(scores) == 9
    regions = {"organ": (1, 2, 3), "tumour": (2,), "never": (7,)}
    for (case, name), value in scores.set_index(["case", "class"])["value"].items():
        files = (str(folder / f"{case}.nii.gz") for folder in (references, predictions))
        stock = compute_metrics(*files, SimpleITKIO(), list(regions.values()), ignore_label=9)
        expected = stock["metrics"][regions[name]]["Dice"]
        assert value == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert np.isnan(scores.loc[scores["case"] == "empty", "value"]).all()
    assert 0 < scores["value"].min() < scores["value"].max() < 1


def test_means_leave_out_what_has_no_dice(folders: tuple[Path, Path]) -> None:
    scores = dice_scores(*folders, LABELS)
    means = mean_per_class(scores)
    assert list(means.index) == ["organ", "tumour", "never"] and math.isnan(means["never"])
    organ = scores[(scores["class"] == "organ") & (scores["case"] != "empty")]["value"]
    assert means["organ"] == pytest.approx(organ.mean())
    assert mean_foreground(scores) == pytest.approx((means["organ"] + means["tumour"]) / 2)


def test_foreground_reads_labels_as_nnunet() -> None:
    classes, ignore = foreground(LABELS)
    assert classes == {"organ": (1, 2, 3), "tumour": (2,), "never": (7,)} and ignore == 9
    mask = region_or_label_to_mask(np.arange(10), classes["organ"])
    assert np.flatnonzero(mask).tolist() == [1, 2, 3]


def test_bad_folders_are_named(folders: tuple[Path, Path], tmp_path: Path) -> None:
    predictions, references = folders
    (predictions / "b.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 cases .*b\.nii\.gz"):
        dice_scores(predictions, references, LABELS)
    write(predictions / "b.nii.gz", np.zeros((5, 7, 8), np.uint8))
    with pytest.raises(ValueError, match=r"b\.nii\.gz has size \(5, 7, 8\)"):
        dice_scores(predictions, references, LABELS)
    with pytest.raises(FileNotFoundError, match="no reference"):
        dice_scores(predictions, tmp_path, LABELS)


def test_log_is_read_back() -> None:
    text = LOG.format(epoch=0, loss=-0.5, seconds=12.5) + LOG.format(epoch=1, loss="-1e-05", seconds=10)
    log = parse_log(text)
    assert log.to_dict("list") == {
        "epoch": [0, 1],
        "train_loss": [-0.5, -1e-5],
        "val_loss": [-0.25, -0.25],
        "dice": [pytest.approx(0.7), pytest.approx(0.7)],
        "seconds": [12.5, 10.0],
    }


def test_log_is_read_while_it_is_written() -> None:
    """Wherever the file ends for now, no epoch is reported that is not whole."""
    first = LOG.format(epoch=0, loss=-0.5, seconds=12.5)
    text = first + LOG.format(epoch=1, loss=-0.75, seconds=10.5)
    for end in range(len(first), len(text)):
        log = parse_log(text[:end])
        assert log["seconds"].tolist() in ([12.5], [12.5, 10.5]), text[:end].splitlines()[-1]
        assert log["epoch"].tolist() in ([0], [0, 1]) and log["train_loss"].notna().all()


def test_newest_log(tmp_path: Path) -> None:
    assert newest_log(tmp_path) is None
    for age, name in enumerate(["training_log_2026_11_9.txt", "training_log_2026_11_10.txt"]):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (100 - age, 100 - age))
    assert newest_log(tmp_path) == tmp_path / "training_log_2026_11_9.txt"


def panels(figure) -> dict[str, np.ndarray]:
    return {ax.get_title(): ax.images[0].get_array() for ax in figure.axes if ax.images}


def test_overlays_show_patients_the_radiologists_way(tmp_path: Path) -> None:
    """One voxel is bright: the patient's right, front and top; it must be left, and up, in every view."""
    array = np.zeros((10, 12, 14), np.float32)
    labels = np.zeros(array.shape, np.uint8)
    labels[3:8, 3:9, 3:11] = 1
    centre = (5, 5, 6)  # lower medians are not unique; the corners below lie in the planes through the centre
    for corner in ((centre[0], 0, 0), (9, centre[1], 0), (9, 0, centre[2])):
        array[corner] = 1.0  # LPS: low x is right, low y is front, high z is top
    files = {name: write(tmp_path / f"{name}.nii.gz", a) for name, a in (("image", array), ("labels", labels))}
    for orientation in ("LPS", "RAS", "PIR"):
        turned = {}
        for name, file in files.items():
            turned[name] = tmp_path / f"{name}_{orientation}.nii.gz"
            sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(str(file)), orientation), str(turned[name]))
        shown = panels(overlay_figure(turned["image"], turned["labels"], turned["labels"], {"organ": (1,)}))
        assert len(shown) == 6
        for title, panel in shown.items():
            assert panel[0, 0] == 1.0, (orientation, title)
        assert shown["axial, reference"].shape == (12, 14)
        assert shown["coronal, reference"].shape == (10, 14)
        assert shown["sagittal, prediction"].shape == (10, 12)


def test_overlays_keep_proportions_and_outline_each_class(tmp_path: Path) -> None:
    labels = np.zeros((8, 10, 12), np.uint8)
    labels[2:6, 3:7, 4:6] = 1
    labels[2:6, 3:7, 6:8] = 2
    spacing = (0.5, 1.0, 4.0)
    image = write(tmp_path / "image.nii.gz", np.random.default_rng(0).normal(size=labels.shape), spacing)
    reference = write(tmp_path / "reference.nii.gz", labels, spacing)
    prediction = write(tmp_path / "prediction.nii.gz", np.zeros_like(labels), spacing)
    figure = overlay_figure(image, reference, prediction, {"left": (1,), "right": (2,)})
    axes = {ax.get_title(): ax for ax in figure.axes if ax.images}
    assert [axes[f"{view}, reference"].get_aspect() for view in ("axial", "coronal", "sagittal")] == [2.0, 8.0, 4.0]
    assert len(axes["axial, reference"].collections) == 2
    assert len(axes["axial, prediction"].collections) == 0
    other = write(tmp_path / "other.nii.gz", np.zeros((8, 10, 11), np.uint8))
    with pytest.raises(ValueError, match="prediction of image.nii.gz has size"):
        overlay_figure(image, reference, other, {"left": (1,)})


def test_page_is_one_file_with_everything_in_it(tmp_path: Path) -> None:
    scores = pd.DataFrame(
        [("case<1>", "organ", "Dice", 0.9), ("case<1>", "tumour", "Dice", float("nan")), ("b", "organ", "Dice", 0.8)],
        columns=["case", "class", "metric", "value"],
    )
    log = parse_log(LOG.format(epoch=0, loss=-0.5, seconds=12.5))
    write_page(
        tmp_path / "page.html",
        title="A & B",
        scores=scores,
        log=log,
        seconds={"plan": 1.25, "train": 20.0},
        commands=["nnUNetv2_train 1 2d 0 && echo '<done>'"],
        overlays=[("the first", learning_curve(log))],
        facts={"Cores": "2"},
    )
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "A &amp; B" in page and "case&lt;1&gt;" in page and "&lt;done&gt;" in page
    assert "<td>0.900</td><td>–</td>" in page and ">0.850<" in page and "2 unseen cases" in page
    assert "<td>20.0</td>" in page and "<td>21.2</td>" in page
    assert page.count("data:image/png;base64,") == 2
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|<script|\$[a-z]", page), "must need nothing from elsewhere"


def test_page_without_a_finished_epoch(tmp_path: Path) -> None:
    scores = pd.DataFrame([("a", "organ", "Dice", 1.0)], columns=["case", "class", "metric", "value"])
    page = tmp_path / "page.html"
    write_page(page, title="t", scores=scores, log=parse_log(""), seconds={}, commands=[], overlays=[], facts={})
    assert "No epoch was finished" in page.read_text(encoding="utf-8")
    assert "1 unseen case<" in page.read_text(encoding="utf-8")
