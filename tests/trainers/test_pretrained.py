"""Weights of another training of the same model (``-pretrained_weights``): taken, adapted, started anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nnunet_fm.models.build import build_network
from nnunet_fm.networks.base import FoundationNetwork
from nnunet_fm.weights.cache import CACHE_VARIABLE
from nnunet_fm.weights.files import WeightsFileError
from nnunet_fm.weights.load import WeightsMismatchError, load_checkpoint, load_trained
from nnunet_fm.weights.slim import bases_of, slim_state_dict
from tests.helpers.small_networks import CLASSES, small

FILE = Path("checkpoint_final.pth")
OTHER_GEOMETRY: dict[str, dict[str, Any]] = {
    "spadnet": {"pos_embed_shape": [3, 2, 4], "spad_patch_depth": 4},
    "swinmm": {"grid": 3},
    "misfm": {"patch_size": [16, 96, 64]},
    "stunet": {"strides": [[1, 1, 1], [2, 2, 2], [1, 2, 2], [1, 2, 2]]},
}


def segmenter(
    backbone: str = "dinov2_s", head: str = "linear", adapter: str = "full", channels: int = 1, classes: int = 3,
    **more: Any,
) -> FoundationNetwork:  # fmt: skip
    arguments = {"backbone": backbone, "head": head, "image_size": 56, **more}
    entry = {"network_class_name": "nnunet_fm.networks.segmenter2d.FoundationSegmenter2D", "arch_kwargs": arguments}
    return build_network(entry, channels, classes, adapter=adapter)


def changed(network: FoundationNetwork) -> FoundationNetwork:
    """The network with weights that no initialisation gives."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    return network


def compare(network: FoundationNetwork, before: dict[str, Tensor], learned: dict[str, Tensor]) -> dict[str, set[str]]:
    """Names of tensors that are the learned ones, those of the beginning, and others."""
    found: dict[str, set[str]] = {"learned": set(), "first": set(), "adapted": set()}
    for name, tensor in network.state_dict().items():
        if name in learned and torch.equal(tensor, learned[name]):
            found["learned"].add(name)
        elif torch.equal(tensor, before[name]):
            found["first"].add(name)
        else:
            found["adapted"].add(name)
    return found


def state(network: FoundationNetwork) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def is_head(name: str, network: FoundationNetwork) -> bool:
    return name.startswith(tuple(f"{key}." for key in network.key_to_head))


@pytest.mark.parametrize("family", CLASSES)
def test_other_classes_and_channels_of_volumetric_networks(family: str) -> None:
    source, target = changed(small(family, channels=2, classes=3)), small(family, channels=3, classes=5)
    before, learned = state(target), state(source)
    (section,) = load_trained(target, learned, file=FILE).sections
    found = compare(target, before, learned)
    assert all(is_head(name, target) for name in found["first"]) and found["first"]
    assert found["adapted"] and found["adapted"] <= {f"{key}.weight" for key in target.keys_to_in_proj} | {
        name for name in section.adapted
    }
    assert set(section.missing) == {name for name in found["first"] if before[name].shape != learned[name].shape}
    for key in target.keys_to_in_proj:
        mine, theirs = target.state_dict()[f"{key}.weight"], learned[f"{key}.weight"]
        torch.testing.assert_close(mine.sum(1), theirs.sum(1))


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("same", [True, None, False])
def test_the_same_number_of_classes(family: str, same: bool | None) -> None:
    """Output layers of other classes of the same number start anew, too."""
    source, target = changed(small(family)), small(family)
    before, learned = state(target), state(source)
    load_trained(target, learned, file=FILE, same_classes=same)
    found = compare(target, before, learned)
    assert not found["adapted"]
    moved = {name for name in found["first"] if not torch.equal(before[name], learned[name])}
    assert moved == (
        {n for n in before if is_head(n, target) and n.endswith(("weight", "bias"))} if same is False else set()
    )


@pytest.mark.parametrize("family", OTHER_GEOMETRY)
def test_another_patch(family: str) -> None:
    source, target = changed(small(family)), small(family, **OTHER_GEOMETRY[family])
    before, learned = state(target), state(source)
    (section,) = load_trained(target, learned, file=FILE).sections
    assert not section.missing and not section.dropped
    parameters = {name for name, _ in target.named_parameters()}  # an index of positions is the network's own
    first = compare(target, before, learned)["first"] & parameters
    assert not {name for name in first if not torch.equal(before[name], learned[name])}


@pytest.mark.parametrize(
    ("head", "adapter", "edge"), [("linear", "rein", 84), ("unetdec_small", "full", 84), ("hqhsam", "rein_lora", 56)]
)
def test_slices_of_another_size_with_other_classes_and_channels(head: str, adapter: str, edge: int) -> None:
    source = changed(segmenter(head=head, adapter=adapter, channels=1))
    target = segmenter(head=head, adapter=adapter, channels=4, classes=6, image_size=edge)
    before, learned = state(target), state(source)
    (section,) = load_trained(target, learned, file=FILE).sections
    found = compare(target, before, learned)
    moved = {n for n in found["first"] if n not in learned or not torch.equal(before[n], learned[n])}
    assert all(is_head(name, target) or name.startswith("stem.") for name in moved)
    assert {"stem.weight", "stem.bias"} <= set(section.missing)
    assert set(section.adapted) == ({"backbone.vit.pos_embed"} if edge != 56 else set())


@pytest.mark.parametrize("backbone", ["sam_b", "mae_b", "dinov2_s_reg"])
def test_positions_of_other_backbones(backbone: str) -> None:
    with torch.device("meta"):
        source = segmenter(backbone, image_size=112).state_dict()
        target = segmenter(backbone, image_size=224)
    (section,) = load_trained(target, {n: torch.ones(t.shape) for n, t in source.items()}, file=FILE).sections
    assert section.adapted and all("pos" in name for name in section.adapted) and not section.missing


def test_a_stem_for_other_channels_is_fitted_or_left_out() -> None:
    learned = state(changed(segmenter(channels=4)))
    five, three = segmenter(channels=5), segmenter(channels=3)
    load_trained(five, learned, file=FILE)
    torch.testing.assert_close(five.state_dict()["stem.weight"].sum(1), learned["stem.weight"].sum(1))
    (section,) = load_trained(three, learned, file=FILE).sections
    assert set(section.dropped) == {"stem.weight", "stem.bias"}


MISFITS = {
    "another head": lambda: (segmenter(), segmenter(head="unetdec_small")),
    "another adapter": lambda: (segmenter(), segmenter(adapter="rein_lora")),
    "without the adapter": lambda: (segmenter(adapter="rein"), segmenter()),
    "another size": lambda: (small("stunet"), small("stunet", dims=[8, 8, 8, 8, 8, 8])),
    "another family": lambda: (small("stunet"), small("suprem")),
    "another family that converts": lambda: (small("stunet"), small("swinmm")),
    "two dimensions": lambda: (segmenter(), small("spadnet")),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_misfit_is_one_line_and_changes_nothing(case: str) -> None:
    source, target = MISFITS[case]()
    before = state(target)
    with pytest.raises((WeightsMismatchError, WeightsFileError)) as error:
        load_trained(target, state(source), file=FILE)
    assert "\n" not in str(error.value) and FILE.name in str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


def test_names_of_wrappers_and_slim_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    entry = {
        "network_class_name": "nnunet_fm.networks.stunet.STUNet",
        "arch_kwargs": CLASSES["stunet"][1] | {"deep_supervision": False},
    }
    entry["arch_kwargs"].pop("deep_supervision")
    official = tmp_path / "tiny.model"
    torch.save({"state_dict": changed(build_network(entry, 1, 3)).state_dict()}, official)
    source, target = (build_network(entry, 1, classes, adapter="freeze") for classes in (3, 4))
    load_checkpoint(source, official, containers=["state_dict"])
    slim = slim_state_dict(source)
    assert bases_of(slim)
    load_trained(target, {f"module._orig_mod.{name}": tensor for name, tensor in slim.items()}, file=FILE)
    own, learned = target.state_dict(), source.state_dict()
    assert all(torch.equal(own[n], learned[n]) for n in own if not is_head(n, target))
    assert bases_of(slim_state_dict(target)), "what is frozen is left out of the new checkpoint, too"
