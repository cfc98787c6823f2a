"""Networks of several parts: which official files they start from, and what becomes of every tensor of these."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nnunet_fm.models.build import architecture, build_network
from nnunet_fm.models.parts import Part, official_parts
from nnunet_fm.models.registry import cards, get_card
from nnunet_fm.plans.planner import Options, planner_class
from nnunet_fm.weights.report import PartReport
from tests.helpers.datasets import nnunet_folders, write_dataset, write_fingerprint
from tests.helpers.errors import fails
from tests.helpers.official_files import manifest
from tests.helpers.official_weights import check_official

NUMBER = 750
SHAPE = (12, 40, 36)


def files(model: str, head: str | None, adapter: str | None, **options: Any) -> dict[str, str]:
    card = get_card(model)
    parts = official_parts(card, head, adapter, card.network.arguments, **options)
    return {part.name: part.checkpoint.name for part in parts}


@pytest.mark.parametrize(
    ("model", "head", "adapter", "expected"),
    [
        ("dinov2_b", "hqhsam", "rein", {"backbone": "dinov2_vitb14_pretrain", "head": "sam_vit_b_01ec64"}),
        ("dinov2_b", "linear", "rein", {"backbone": "dinov2_vitb14_pretrain"}),
        ("dinov2_g", "samdec", "freeze", {"backbone": "dinov2_vitg14_pretrain", "head": "sam_vit_h_4b8939"}),
        ("mae_l", "hsam", "full", {"backbone": "mae_pretrain_vit_large", "head": "sam_vit_l_0b3195"}),
        (
            "medsam_b", "hqhsam", "ladder",
            {"backbone": "medsam_vit_b", "head": "medsam_vit_b", "ladder": "dinov2_vits14_pretrain"},
        ),
        ("stunet_s", None, "full", {"backbone": "stunet_small_totalsegmentator"}),
        ("vanilla_unet2d", None, None, {}),
    ],
)  # fmt: skip
def test_every_part_has_its_file(model: str, head: str | None, adapter: str | None, expected: dict[str, str]) -> None:
    assert files(model, head, adapter) == expected


def test_another_branch_starts_from_its_own_file() -> None:
    card = get_card("sam_b")
    arguments = {"adapter_arguments": {"ladder": {"branch": "mae_b"}}}
    assert [p.checkpoint.name for p in official_parts(card, "linear", "ladder", arguments)] == [
        "sam_vit_b_01ec64",
        "mae_pretrain_vit_base",
    ]


def test_a_file_of_another_part_is_refused() -> None:
    with pytest.raises(LookupError, match="the head cannot start from 'sam_vit_h_4b8939'; legal: sam_vit_b_01ec64"):
        files("dinov2_b", "hqhsam", "freeze", chosen={"head": "sam_vit_h_4b8939"})


def test_every_card_names_files_that_exist() -> None:
    for name, card in cards().items():
        for adapter in card.adapters:
            assert "backbone" in files(name, card.default_head, adapter), name


def section(model: str, head: str, adapter: str, part: str, official: str, **options: Any) -> PartReport:
    """What the load report says of a part, by names and shapes alone."""
    card = get_card(model)
    entry = architecture(card, patch_size=[64, 64], spacing=[1.0, 1.0], head=head)
    found: dict[str, Part] = {p.name: p for p in official_parts(card, head, adapter, entry["arch_kwargs"], **options)}
    with torch.device("meta"):
        network = build_network(entry, 1, 5, adapter=adapter)
        state: dict[str, Tensor] = {k: torch.empty(s) for k, s in manifest(official)["state_dict"].items()}
    if part == "head":
        network.get_submodule("head").starts_mask_decoder = found[part].decoder  # type: ignore[assignment]
    report = check_official(network, state, drop=found[part].drop, new=found[part].new, part=part)
    return report.sections[0]


def starts(names: Any) -> set[str]:
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize(("model", "head"), [("mae_b", "hqhsam"), ("dinov2_b", "samdec"), ("sam_b", "hqsam")])
def test_prompt_encoder_and_neck_come_from_sam(model: str, head: str) -> None:
    found = section(model, head, "freeze", "head", "sam_vit_b")
    assert starts(found.matched) == {"neck", "prompt_encoder"}
    assert starts(found.dropped) == {"image_encoder", "mask_decoder"}
    assert starts(found.missing) == {"mask_decoder"} | ({"mask_decoder2"} if head == "hqhsam" else set())


def test_the_neck_of_samdec_stays_in_sam_itself() -> None:
    assert starts(section("sam_b", "samdec", "rein", "head", "sam_vit_b").matched) == {"prompt_encoder"}
    backbone = section("sam_b", "samdec", "rein", "backbone", "sam_vit_b")
    assert "neck.0.weight" in [*backbone.matched, *backbone.adapted]


def test_a_width_that_sam_does_not_have_gets_a_random_neck() -> None:
    found = section("dinov2_s", "hqhsam", "freeze", "head", "sam_vit_b")
    assert starts(found.matched) == {"prompt_encoder"} and "neck" in starts(found.missing)


def test_the_mask_decoder_starts_from_the_file_where_it_fits() -> None:
    found = section("mae_b", "samdec", "freeze", "head", "sam_vit_b", decoder=True)
    assert starts(found.matched) == {"neck", "prompt_encoder", "mask_decoder"}
    assert len(found.matched) > 100
    assert all(name.startswith("mask_decoder.") for name in found.missing)


def test_the_ladder_has_a_section_of_its_own() -> None:
    found = section("sam_b", "hqhsam", "ladder", "ladder", "dinov2_vits14")
    assert len(found.matched) == 173 and starts(found.missing) == {"alpha", "necks_y2_ch"}


# Plans


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    variables = nnunet_folders(tmp_path, monkeypatch)
    monkeypatch.setenv("NNUNET_FM_WEIGHTS", str(tmp_path / "weights"))
    folder = write_dataset(variables["nnUNet_raw"], NUMBER, shape=SHAPE)
    write_fingerprint(folder, [SHAPE] * 6, [(1.0, 1.0, 1.0)] * 6)

    def make(planner: str, **options: Any) -> dict[str, Any]:
        made = Options(force=True, iterations=4, **options)
        plans: dict[str, Any] = planner_class(planner)(NUMBER, 40, options=made).plan_experiment()
        return plans["nnunet_fm"]["weights"]

    return make


def test_a_plan_names_the_file_of_every_part(plan: Any) -> None:
    entries = plan("FMPlanner_dinov2_s_hqhsam_ladder")
    assert {part: entry["name"] for part, entry in entries.items()} == {
        "backbone": "dinov2_vits14_pretrain",
        "head": "sam_vit_b_01ec64",
        "ladder": "dinov2_vits14_pretrain",
    }
    assert not entries["head"]["decoder"]


def test_head_weights_are_chosen_by_a_short_name(plan: Any) -> None:
    head = plan("FMPlanner_dinov2_s_hqhsam_freeze", head_weights="medsam")["head"]
    assert head == {"name": "medsam_vit_b", "sha256": None, "decoder": True}
    with fails("head-weights", "--head-weights", "dinov2_s", "sam2"):
        plan("FMPlanner_dinov2_s_hqhsam_freeze", head_weights="sam2")
    with fails("head-weights", "linear", "dinov2_s"):
        plan("FMPlanner_dinov2_s_linear_freeze", head_weights="sam")
