"""Feature maps of a frozen backbone are computed once for each slice, and nothing else changes."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from nnunet_fm.models.build import build_network
from nnunet_fm.models.names import Spec
from nnunet_fm.networks.feature_cache import FeatureCache
from nnunet_fm.networks.segmenter2d import FoundationSegmenter2D
from nnunet_fm.planfile.schema import VERSION
from nnunet_fm.planfile.training_config import check_configuration, resolve
from tests.helpers.errors import fails

EDGE = 28
SLICES = torch.randn(6, 1, EDGE, EDGE, generator=torch.Generator().manual_seed(0))


class Computing:
    """Two maps of each slice, and which slices were asked for."""

    def __init__(self, slices: Tensor) -> None:
        self.slices, self.asked = slices, list[list[int]]()

    def __call__(self, indices: Tensor) -> list[Tensor]:
        self.asked.append(indices.tolist())
        chosen = self.slices[indices]
        return [chosen.mean((1, 2)), chosen.bfloat16()]


def maps(cache: FeatureCache, slices: Tensor) -> tuple[list[Tensor], list[list[int]]]:
    computing = Computing(slices)
    return cache.maps(slices, computing), computing.asked


def test_each_slice_is_computed_once() -> None:
    cache = FeatureCache(10**9)
    expected = Computing(SLICES)(torch.arange(6))
    for indices, asked in (([0, 1, 0], [[0, 1]]), ([1, 2, 0], [[1]]), ([2, 1], []), ([5, 4], [[0, 1]])):
        found, computed = maps(cache, SLICES[indices])
        assert computed == asked
        assert all(torch.equal(one, full[indices]) for one, full in zip(found, expected, strict=True))
        assert [one.dtype for one in found] == [torch.float32, torch.bfloat16]
    each = sum(one[0].nbytes for one in expected)
    assert cache.bytes == 5 * each
    assert cache.report().startswith("40% of the feature maps were known; those of 5 slices")  # 4 of 10
    assert cache.report().startswith("0%")
    cache.clear()
    assert cache.bytes == 0 and maps(cache, SLICES[:1])[1] == [[0]]


def test_the_values_and_the_shape_are_the_name() -> None:
    cache = FeatureCache(10**9)
    maps(cache, SLICES)
    for other in (SLICES.flip(2), SLICES.mT, SLICES + 1e-6, SLICES.reshape(6, 1, 2 * EDGE, EDGE // 2)):
        assert maps(cache, other)[1] == [[0, 1, 2, 3, 4, 5]]


def test_what_was_not_asked_for_the_longest_goes() -> None:
    each = sum(one[0].nbytes for one in Computing(SLICES)(torch.arange(6)))
    cache = FeatureCache(2 * each)
    for slices in (SLICES[:2], SLICES[:1], SLICES[2:3]):  # the second goes for the third, as the first was asked for
        maps(cache, slices)
    assert cache.bytes == 2 * each
    assert maps(cache, SLICES[[0, 2]])[1] == []
    assert maps(cache, SLICES)[1] == [[1, 3, 4, 5]]
    assert cache.bytes == 2 * each
    assert maps(FeatureCache(each - 1), SLICES[:1])[1] == [[0]]


def test_maps_of_predictions_are_not_kept() -> None:
    cache = FeatureCache(10**9)
    with torch.inference_mode():
        maps(cache, SLICES)
    assert cache.bytes == 0 and maps(cache, SLICES)[1] == [[0, 1, 2, 3, 4, 5]]


def network(adapter: str, channels: int = 1, backbone: str = "dinov2_s") -> FoundationSegmenter2D:
    torch.manual_seed(0)
    arguments = {"backbone": backbone, "head": "linear", "image_size": EDGE if backbone[0] == "d" else 32}
    entry = {"network_class_name": "nnunet_fm.networks.segmenter2d.FoundationSegmenter2D", "arch_kwargs": arguments}
    built = build_network(entry, channels, 2, adapter=adapter).train()
    assert isinstance(built, FoundationSegmenter2D)
    return built


@pytest.mark.parametrize(
    ("adapter", "backbone"), [("freeze", "dinov2_s"), ("freeze", "resnet18"), ("ladder", "dinov2_s")]
)
def test_training_is_the_same(adapter: str, backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNUNET_FM_BF16", "0")  # results of batches of other sizes are rounded otherwise
    weights: list[dict[str, Tensor]] = []
    for keeps in (False, True):
        built = network(adapter, backbone=backbone)
        if keeps:
            built.keep_maps(10**9)
        optimizer = torch.optim.SGD([p for p in built.parameters() if p.requires_grad], 0.01)
        for indices in ([0, 1, 2], [2, 1, 0], [0, 1, 2], [2, 2, 0]):
            optimizer.zero_grad()
            torch.manual_seed(0)  # heads have dropout
            built(SLICES[indices]).square().mean().backward()
            optimizer.step()
        weights.append({name: value.clone() for name, value in built.state_dict().items()})
        if built.feature_cache is not None:
            assert built.feature_cache.report().startswith("75% ")
            built.load_state_dict(built.state_dict())
            assert built.feature_cache.bytes == 0
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-5) for name in weights[0])


def test_a_network_with_maps_can_be_sent_to_a_worker() -> None:
    built = network("freeze")
    built.keep_maps(10**9)
    again = pickle.loads(pickle.dumps(built)).eval()
    with torch.no_grad():
        assert torch.equal(built.eval()(SLICES), again(SLICES))


@pytest.mark.parametrize(
    ("adapter", "channels"),
    [("full", 1), ("lora", 1), ("rein", 1), ("freeze", 2)],
)
def test_maps_that_change_are_not_kept(adapter: str, channels: int) -> None:
    with fails("feature-cache"):
        network(adapter, channels).keep_maps(10**9)


@pytest.mark.parametrize(
    ("model", "adapter", "recipe", "expected"),
    [
        ("dinov2_s", "freeze", {}, ("feature-cache", "augmentation=none")),
        ("dinov2_s", "lora", {"augmentation": "none"}, ("feature-cache", "lora")),
        ("stunet_s", "freeze", {"augmentation": "none"}, ("recipe-dimension",)),
        ("dinov2_s", "freeze", {"augmentation": "flips"}, None),
    ],
)
def test_a_plan_says_what_would_help(
    model: str, adapter: str, recipe: dict[str, Any], expected: tuple[str, ...] | None
) -> None:
    two = model == "dinov2_s"
    key: dict[str, Any] = {
        "version": VERSION,
        "model": model,
        "variant": "mission",
        "adapter": adapter,
        "iterations": 10,
    }
    key["recipe"] = {"augmentation": "slices" if two else "light", **recipe, "feature_cache": 1}
    if two:
        key["head"] = "linear"
    entry = {"patch_size": [EDGE] * (2 if two else 3), "batch_size": 2, "spacing": [1.0] * (2 if two else 3)}
    plans = {"plans_name": "p", "configurations": {"c": entry}, "transpose_forward": [0, 1, 2], "nnunet_fm": key}
    config = resolve(plans, Spec(scratch=True, adapter=adapter))
    if expected is None:
        check_configuration(config, plans, "c")
        return
    with fails(*expected):
        check_configuration(config, plans, "c")
