"""The grammar of names: unambiguous over every name the project will ever use, helpful about every other."""

from __future__ import annotations

from itertools import product

import pytest

from nnunet_fm.models.names import METHODS, VARIANTS, Grammar, Parts, Spec, plans_name, trainer_name
from nnunet_fm.models.registry import cards, get_card, grammar
from tests.helpers.errors import fails

HEADS = (
    "linear", "resdec", "unetdec", "unetdec_small", "da", "da_small", "segformer", "samdec", "samdec_frozen_pe",
    "hqsam", "hsam", "hqhsam",
)  # fmt: skip
MAP_HEADS = ("unetdec_small", "linear", "resdec", "unetdec", "da", "da_small", "segformer")
ADAPTERS = ("freeze", "full", "lora", "rein", "rein_lora", "ladder")
VOLUMETRIC = {
    **{f"stunet_{size}": Parts(adapters=("full", "freeze", "lora")) for size in "sblh"},
    "suprem": Parts(adapters=("full", "freeze", "lora")),
    "dae": Parts(adapters=("full", "freeze", "lora")),
    "spadnet": Parts(adapters=("full", "freeze", "lora"), aliases=("pumit",)),
    "misfm": Parts(adapters=("full", "freeze", "lora"), aliases=("pctnet",)),
    "swinmm": Parts(adapters=("full", "freeze", "lora")),
    "vanilla_unet3d": Parts(),
    "vanilla_unet2d": Parts(),
    "swin_unet": Parts(),
}
BACKBONES = [
    *(f"dinov2_{size}{reg}" for size in "sblg" for reg in ("", "_reg")),
    *(f"sam_{size}" for size in "blh"), "medsam_b", *(f"mae_{size}" for size in "blh"),
]  # fmt: skip
RESNETS = [f"resnet{depth}" for depth in (18, 34, 50, 101, 152)]
EVERYTHING = {
    **VOLUMETRIC,
    **{name: Parts(HEADS, ADAPTERS) for name in BACKBONES},
    **{name: Parts(MAP_HEADS, ("full", "freeze", "lora")) for name in RESNETS},
}


def test_every_name_of_the_whole_product_parses_one_way_only() -> None:
    """Grammar raises on any two meanings of one name; here we walk the product a second way and compare."""
    whole = Grammar(EVERYTHING)
    seen = 0
    for model, parts in EVERYTHING.items():
        for spelt, head, adapter, scratch in product(
            (model, *parts.aliases), (None, *parts.heads), (None, *parts.adapters), (False, True)
        ):
            name = "_".join(p for p in ("fm_trainer", spelt, head, adapter, "scratch" if scratch else None) if p)
            assert whole.trainer(name) == Spec(model, head, adapter, scratch)
            seen += 1
    for head, adapter, scratch in product((None, *HEADS), (None, *ADAPTERS), (False, True)):
        name = "_".join(p for p in ("fm_trainer", head, adapter, "scratch" if scratch else None) if p)
        assert whole.trainer(name) == Spec(None, head, adapter, scratch)
        seen += 1
    for method in METHODS:
        assert whole.trainer(f"fm_trainer_{method}") == Spec(method=method)
        seen += 1
    assert seen == len(whole.trainers) > 3000


def test_planner_names_of_the_whole_product() -> None:
    whole = Grammar(EVERYTHING)
    for name, spec in whole.planners.items():
        assert whole.planner(name) == spec
    assert whole.planner("FMPlanner") == Spec()
    assert whole.planner("FMPlanner_sam_b_samdec_frozen_pe_rein_lora_thesis") == Spec(
        "sam_b", "samdec_frozen_pe", "rein_lora", variant="thesis"
    )
    assert {s.variant for s in whole.planners.values()} == {None, *VARIANTS}


def test_two_meanings_of_one_name_are_refused() -> None:
    with fails("name-ambiguous", "fm_trainer_a_b_c"):
        Grammar({"a": Parts(heads=("b_c",)), "a_b": Parts(heads=("c",))})


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("fm_trainer_stunt_b", "fm_trainer_stunet_b"),
        ("fm_trainer_dinov2_b_liner", "fm_trainer_dinov2_b_linear"),
        ("fm_trainer_stunet_b_linear", "fm_trainer_stunet_b"),
    ],
)
def test_unknown_names_list_the_nearest_legal_ones(wrong: str, near: str) -> None:
    with fails("name-unknown", near) as caught:
        grammar().trainer(wrong)
    assert isinstance(caught.value, AttributeError)  # hasattr() must see a missing name, not an accident


def test_names_and_meanings_go_both_ways() -> None:
    for name, spec in grammar().trainers.items():
        assert grammar().trainer(trainer_name(spec)) == spec, name
    assert plans_name(Spec("dinov2_b", "linear", variant="official")) == "FMPlans_dinov2_b_linear_official"
    assert plans_name(Spec()) == "FMPlans"


def test_cards_are_complete_and_say_what_a_user_may_do() -> None:
    for name, card in cards().items():
        assert get_card(name) is card
        assert card.paper and card.code_licence and card.weights_licence and card.summary
        for variant in card.variants.values():
            assert len(variant.geometry.patch) == card.dim
        if card.checkpoint is None:
            assert not card.adapters, f"{name} has no official weights to adapt"
    with fails("name-unknown", "stunet_b"):
        get_card("stunet")
