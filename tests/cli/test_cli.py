"""The command line: listings, planning, exit codes and help."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from nnunet_fm import __version__
from nnunet_fm.adapters import ADAPTERS
from nnunet_fm.heads import HEADS
from nnunet_fm.models.registry import cards, grammar
from tests.helpers.commands import Command, make_command
from tests.helpers.datasets import nnunet_folders, write_dataset, write_fingerprint
from tests.helpers.errors import assert_refused


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return make_command(monkeypatch, capsys)


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset with a fingerprint; returns its preprocessed folder."""
    variables = nnunet_folders(tmp_path, monkeypatch)
    folder = write_dataset(variables["nnUNet_raw"], 777, cases=1, test_cases=0, shape=(8, 8, 8))
    write_fingerprint(folder, [(60, 70, 80)], [(1.0, 1.0, 1.0)])
    return Path(variables["nnUNet_preprocessed"], folder.name)


def test_listings_come_from_the_cards(command: Command) -> None:
    code, out, _ = command("list", "--json")
    models = json.loads(out)
    assert code == 0 and [m["name"] for m in models] == list(cards())
    assert all(m["parameters"] > 1e5 and m["weights licence"] for m in models)
    assert {h["name"] for h in json.loads(command("list", "heads", "--json")[1])} == set(HEADS)
    assert {a["name"] for a in json.loads(command("list", "adapters", "--json")[1])} == set(ADAPTERS)
    assert command("list", "trainers")[1].split() == list(grammar().trainers)
    table = command("list")[1].splitlines()
    assert len(table) < 24 and max(map(len, table)) < 120 and "\x1b" not in "".join(table)
    for name in cards():
        assert re.search(rf"\b{name}\b", command("list", name)[1].splitlines()[0])


def test_listings_take_a_name_or_a_pattern(command: Command) -> None:
    facts = command("list", "stunet_b")[1]
    for part in ("58.18 M", "base_ep4k.model", "weights pull stunet_base_totalsegmentator", "arXiv 2304.06716"):
        assert part in " ".join(facts.split())
    sizes = command("list", "dinov2*")[1].splitlines()
    assert len(sizes) == 2 + 8 and sizes[2].startswith("dinov2_s ")
    assert json.loads(command("list", "pumit", "--json")[1])[0]["name"] == "spadnet", "an alias"
    assert command("list", "trainers", "fm_trainer_resnet18_linear_l*")[1].split() == [
        "fm_trainer_resnet18_linear_lora",
        "fm_trainer_resnet18_linear_lora_scratch",
    ]
    assert "1x1 convolution" in command("list", "heads", "linear")[1]
    rows = {row["name"]: row["what"] for row in json.loads(command("list", "adapters", "--json")[1])}
    assert all(rows.values()) and rows["rein"] != rows["rein_lora"]
    code, _, err = command("list", "stunet_x")
    assert code == 1 and "stunet_s" in err
    assert command("list", "q*")[0] == command("list", "a", "b")[0] == 2


def test_the_version_needs_no_sub_command(command: Command) -> None:
    assert command("--version") == (0, f"{__version__}\n", "")


def test_plan_takes_lists_as_nnunet_does(command: Command, dataset: Path) -> None:
    arguments = ("-d", "777", "-m", "stunet_s", "--spacing", "2", "1.5", "1.5", "--patch", "32", "48", "48")
    arguments += ("--set", "recipe.loss=ce", "--set", "recipe.seed=7", "--batch", "1", "--mirror", "y,z")
    code, out, err = command("plan", *arguments)
    assert code == 0 and "mirroring   z, y  [user]" in out, err
    plans = json.loads((dataset / "FMPlans_stunet_s.json").read_text())
    configuration = plans["configurations"]["3d_fullres"]
    assert configuration["spacing"] == [2.0, 1.5, 1.5] and configuration["patch_size"] == [32, 48, 48]
    assert (plans["nnunet_fm"]["recipe"]["loss"], plans["nnunet_fm"]["recipe"]["seed"]) == ("ce", 7)
    assert plans["nnunet_fm"]["recipe"]["mirror"] == [0, 1]


def test_plan_prints_one_json_object(command: Command, dataset: Path) -> None:
    code, out, err = command("plan", "-d", dataset.name, "--spacing", "native", "--name", "FMPlans_x", "--json")
    result = json.loads(out)
    assert code == 0 and result["path"] == str(dataset / "FMPlans_x.json")
    assert result["plans"]["plans_name"] == "FMPlans_x" and "FMPlanner chose" in err


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (("plan", "-d", "777", "-m", "stunet_s", "--variant", "best"), 2, ("option-value", "--variant", "best")),
        (("plan", "-d", "777", "--head", "linear"), 2, ("option-incomplete", "-m MODEL")),
        (("plan", "-d", "777", "-m", "stunet_s", "--spacing", "fine"), 2, ("option-value", "--spacing", "fine")),
        (("plan", "-d", "777", "-m", "dinov2_s", "--slice-axis", "w"), 2, ("option-value", "--slice-axis", "z, y, x")),
        (("plan", "-d", "777", "-m", "stunet_s", "--mirror", "left"), 2, ("mirror-axes", "--mirror", "left")),
        (
            ("plan", "-d", "777", "-m", "stunet_s", "--mirror", "z", "--set", "recipe.mirror=[1]"),
            2,
            ("option-conflict", "--mirror", "recipe.mirror"),
        ),
        (("plan", "-d", "777", "--control", "stock", "--mirror", "z"), 2, ("option-conflict", "--mirror")),
        (("plan", "-d", "777", "-m", "suprem", "--mirror", "z"), 1, ("mirror-augmentation", "suprem_official")),
        (("plan", "-d", "777", "-m", "stunet_s", "--set", "loss=ce"), 2, ("option-value", "--set", "loss=ce")),
        (("plan", "-d", "777", "-m", "stunet_s", "--set", "recipe.los=ce"), 1, ("recipe-field", "recipe.los")),
        (("plan", "-d", "777", "-m", "stunt_s"), 1, ("name-unknown", "FMPlanner_stunet_s")),
        (("plan", "-d", "778", "-m", "stunet_s"), 1, ("dataset-missing", "778")),
        (("list", "cards"), 1, ("name-unknown", "cards")),
    ],
)
def test_failures_have_one_reason_and_a_code(
    command: Command, dataset: Path, arguments: tuple[str, ...], code: int, expected: tuple[str, ...]
) -> None:
    got, _, err = command(*arguments)
    assert got == code
    assert_refused(err, *expected)
    assert code == 2 or err.strip().splitlines()[-1].startswith("nnunet-fm: ")


@pytest.mark.parametrize(("arguments", "fact"), [(("plan",), "-d"), (("nonsense",), "nonsense")])
def test_words_that_are_no_command_line_are_named(command: Command, arguments: tuple[str, ...], fact: str) -> None:
    code, _, err = command(*arguments)
    assert code == 2 and fact in err and "Traceback" not in err


@pytest.mark.parametrize("name", ["list", "plan", "doctor", "demo"])
def test_help_has_examples(command: Command, name: str) -> None:
    code, out, _ = command(name, "--help")
    assert code == 0 and "Examples" in out and f"nnunet-fm {name}" in out
