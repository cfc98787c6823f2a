"""``nnunet-fm evaluate``: what it finds by itself, prints, writes, warns of and refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nnunet_fm.metrics.scores_table import COLUMNS, METRICS, SLICE, read_scores
from tests.helpers.commands import Command, make_command
from tests.helpers.errors import assert_refused
from tests.helpers.images import write_volume

LABELS = {"background": 0, "liver": 1, "all": [1, 2], "ignore": 3}
FAST = ("--metrics", "Dice", "HD95", "-np", "1")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return make_command(monkeypatch, capsys, "evaluate")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Predictions of a model, and the test labels of a raw dataset whose training labels have other sizes."""
    raw, predictions = tmp_path / "Dataset777_Tëst", tmp_path / "predictions"
    reference = np.zeros((6, 10, 10), np.uint8)
    reference[1:5, 2:8, 2:8] = 1
    reference[1:5, 2:8, 7] = 2
    training = np.zeros((6, 10, 10), np.uint8)
    training[:, :, :] = 2
    training[0, 0, 0] = 1
    for case in ("a", "b"):
        write_volume(raw / "labelsTs" / f"{case}.nii.gz", reference)
        write_volume(raw / "labelsTr" / f"train_{case}.nii.gz", training)
        write_volume(predictions / f"{case}.nii.gz", np.roll(reference, case == "b", 1))
    content = {"labels": LABELS, "file_ending": ".nii.gz", "regions_class_order": [2, 1]}
    (raw / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return predictions, raw / "labelsTs"


def test_table(command: Command, folders: tuple[Path, Path]) -> None:
    code, out, err = command(*folders, *FAST)
    assert code == 0 and err == ""
    lines = [line.split("  ") for line in out.splitlines()]
    rows = {cells[0].strip(): [cell.strip() for cell in cells[1:] if cell.strip()] for cells in lines if len(cells) > 1}
    assert out.startswith("2 cases") and rows["class"] == ["size", "Dice", "HD95 (mm)"]
    assert rows["liver"] == ["<1 %", "0.917 ± 0.118", "0.50 ± 0.71"]  # sizes are those of labelsTr
    assert rows["all"] == ["≥15 %", "0.917 ± 0.118", "0.50 ± 0.71"]
    assert rows["mean of classes"] == ["0.917", "0.50"]


def test_json_and_files_agree(command: Command, folders: tuple[Path, Path], tmp_path: Path) -> None:
    code, out, _ = command(*folders, *FAST, "--json", "-o", tmp_path / "new" / "scores.csv")
    content = json.loads(out)
    assert code == 0 and content["cases"] == 2 and list(content["foreground_mean"]) == ["Dice", "HD95"]
    scores = read_scores(tmp_path / "new" / "scores.csv")
    assert list(scores.columns) == COLUMNS and scores.to_dict("records") == content["scores"]
    assert content["classes"]["liver"]["Dice"]["mean"] == pytest.approx((1 + 5 / 6) / 2)
    assert content["size_groups"] == {"liver": "<1 %", "all": "≥15 %"}
    assert content["settings"]["sizes_from"].endswith("labelsTr") and content["settings"]["labels"] == LABELS
    command(*folders, *FAST, "-o", tmp_path / "new" / "scores.json")
    assert json.loads((tmp_path / "new" / "scores.json").read_text()) == content
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["scores.csv", "scores.json"]


def test_options_reach_the_scores(command: Command, folders: tuple[Path, Path], tmp_path: Path) -> None:
    write_volume(folders[0] / "a.nii.gz", np.zeros((6, 10, 10), np.uint8))
    options = ("--metrics", "dice,volume_reference", "--empty", "smoothed", "--include-background", "--per-slice")
    code, out, err = command(*folders, *options, "--slice-axis", "y", "--group-by", "case", "-np", "1", "--json")
    content = json.loads(out)
    assert code == 0 and list(content["classes"]) == ["background", "liver", "all"], err
    rows = {(row["case"], row["class"], row["metric"], row[SLICE]): row for row in content["scores"]}
    assert rows["a", "liver", "Dice", None]["value"] == pytest.approx(1 / (4 * 6 * 5 + 1))
    assert rows["a", "liver", "Dice", 0]["value"] == 1 and rows["a", "liver", "Dice", 2]["value"] == 1 / 21
    assert max(index for *_, index in rows if index is not None) == 9
    assert rows["a", "liver", "Dice", None]["size_group"] == "≥15 %"  # 5 of 6 labelled voxels of the case
    assert "Dice" in content["foreground_mean"] and rows["a", "background", "Dice", None]["size_group"] == ""
    code, out, _ = command(*folders, "--metrics", "Dice", "-np", "1", "--size-from", folders[1], "--json")
    assert json.loads(out)["size_groups"]["liver"] == "≥15 %"


def test_undefined_scores_are_null_and_counted(command: Command, folders: tuple[Path, Path]) -> None:
    write_volume(folders[0] / "a.nii.gz", np.zeros((6, 10, 10), np.uint8))
    content = json.loads(command(*folders, *FAST, "--json")[1])
    assert content["classes"]["all"]["HD95"] == {"mean": 1.0, "sd": None, "n": 1}
    assert [row["value"] for row in content["scores"] if row["metric"] == "HD95"] == [None, None, 1, 1]
    assert "1.00 (n=1)" in command(*folders, *FAST)[1]


def test_labels_and_ending_without_a_dataset_json(command: Command, folders: tuple[Path, Path]) -> None:
    (folders[1].parent / "dataset.json").unlink()
    content = json.loads(command(*folders, *FAST, "--json")[1])
    assert content["settings"]["labels"] == {"background": 0, "1": 1, "2": 2}
    assert content["settings"]["dataset_json"] is None and list(content["classes"]) == ["1", "2"]
    (folders[0] / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "x": 2}}))
    assert list(json.loads(command(*folders, *FAST, "--json")[1])["classes"]) == ["x"]
    other = folders[1] / "other.json"
    other.write_text(json.dumps({"labels": {"background": 0, "y": [1, 2]}, "file_ending": ".nii.gz"}))
    assert list(json.loads(command(*folders, *FAST, "--json", "-djfile", other)[1])["classes"]) == ["y"]


def test_missing_predictions(command: Command, folders: tuple[Path, Path]) -> None:
    (folders[0] / "b.nii.gz").rename(folders[0] / "c.nii.gz")
    code, out, err = command(*folders, *FAST)
    assert code == 1 and out == ""
    assert_refused(err, "predictions-missing", "1 of 2", "b.nii.gz", "--chill")
    code, out, err = command(*folders, *FAST, "--chill", "--json")
    assert code == 0 and json.loads(out)["cases"] == 1
    assert "1 of 2 references have no prediction and are left out" in err
    assert "1 of 2 predictions have no reference and are left out: c.nii.gz" in err
    (folders[0] / "a.nii.gz").unlink()
    code, _, err = command(*folders, *FAST, "--chill")
    assert code == 1
    assert_refused(err, "predictions-missing")


def test_swapped_folders_are_told(command: Command, folders: tuple[Path, Path]) -> None:
    predictions, references = folders
    code, _, err = command(references, predictions, *FAST)
    assert code == 0 and "may be swapped" in err and "labelsTs" in err and "PRED GT" in err
    elsewhere = references.rename(references.parent / "mine")
    assert "swapped" not in command(elsewhere, predictions, *FAST)[2]
    (predictions / "plans.json").write_text("{}")
    assert "plans.json of predictions" in command(elsewhere, predictions, *FAST)[2]
    assert "swapped" not in command(predictions, elsewhere, *FAST)[2]


def test_warnings_are_one_line_each(command: Command, folders: tuple[Path, Path]) -> None:
    array = np.full((6, 10, 10), 17, np.uint8)
    write_volume(folders[0] / "a.nii.gz", array)
    code, _, err = command(*folders, *FAST)
    assert code == 0 and err == "nnunet-fm: warning: labels [17] are no class, and count as background, in a\n"


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (("--metrics", "F1"), 2, ("option-value", "F1", "Dice, Jaccard")),
        (("--slice-axis", "w"), 2, ("option-value", "--slice-axis", "z, y, x")),
        (("--tolerance", "-1"), 2, ("option-value", "--tolerance", "-1.0 mm")),
        (("--tolerance", "nan"), 2, ("option-value", "--tolerance", "nan mm")),
        (("-o", "scores.xlsx"), 2, ("option-value", "scores.xlsx", ".csv", ".json")),
        (("--group-by", "case", "--size-from", "."), 2, ("option-conflict", "--size-from", "--group-by case")),
        (("--size-from", "nowhere"), 1, ("label-maps-missing", "nowhere")),
    ],
)
def test_bad_arguments(
    command: Command,
    folders: tuple[Path, Path],
    arguments: tuple[str, ...],
    code: int,
    expected: tuple[str, ...],
) -> None:
    got, out, err = command(*folders, "-np", "1", *arguments)
    assert got == code and out == ""
    assert_refused(err, *expected)


def test_values_that_are_no_choice_and_files_that_are_not_there(command: Command, folders: tuple[Path, Path]) -> None:
    for arguments, code, fact in (
        (("--empty", "one"), 2, "smoothed"),
        (("-djfile", "nowhere.json"), 1, "nowhere.json"),
    ):
        got, out, err = command(*folders, "-np", "1", *arguments)
        assert got == code and fact in err and out == "" and "Traceback" not in err


def test_bad_folders(command: Command, folders: tuple[Path, Path], tmp_path: Path) -> None:
    assert command(folders[0], tmp_path / "nowhere")[0] == 1
    (tmp_path / "nothing").mkdir()
    code, _, err = command(folders[0], tmp_path / "nothing")
    assert code == 1
    assert_refused(err, "label-maps-missing", tmp_path / "nothing")
    write_volume(folders[0] / "a.nii.gz", np.zeros((6, 10, 9), np.uint8))
    code, _, err = command(*folders, *FAST)
    assert code == 1
    assert_refused(err, "grid-differs", "a.nii.gz", "(6, 10, 9)", "(6, 10, 10)")


def test_help_states_the_conventions(command: Command) -> None:
    code, out, _ = command("--help")
    text = " ".join(out.split())
    assert code == 0 and "nnunet-fm evaluate predictions" in text and "(2|P∩R|+1)/(|P|+|R|+1)" in text
    assert all(metric in text for metric in METRICS) and "predictions first" in text


@pytest.mark.slow
def test_large_volumes_need_little_memory(tmp_path: Path) -> None:
    """512 x 512 x 700 voxels and 24 classes, of which every one has stray voxels all over the volume."""
    generator = np.random.default_rng(0)
    reference = np.zeros((700, 512, 512), np.uint8)
    for label in range(1, 25):
        edges = generator.integers(10, 150, 3)
        corner = [generator.integers(0, whole - edge) for whole, edge in zip(reference.shape, edges, strict=True)]
        reference[tuple(slice(first, first + edge) for first, edge in zip(corner, edges, strict=True))] = label
    write_volume(tmp_path / "r" / "a.nii.gz", reference)
    prediction = np.roll(reference, 2, 2)
    prediction[tuple(generator.integers(0, edge, 20_000) for edge in reference.shape)] = generator.integers(
        1, 25, 20_000
    )
    write_volume(tmp_path / "p" / "a.nii.gz", prediction)
    (tmp_path / "d.json").write_text(json.dumps({"labels": {str(i): i for i in range(25)}, "file_ending": ".nii.gz"}))
    code = (
        "from nnunet_fm.cli.app import app; from nnunet_fm.records.machine import peak_memory;"
        "app(standalone_mode=False); print(peak_memory() / 2**30)"
    )
    arguments = ["evaluate", tmp_path / "p", tmp_path / "r", "-djfile", tmp_path / "d.json", "-np", "1"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 2.0  # GiB
