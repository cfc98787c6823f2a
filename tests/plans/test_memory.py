"""Memory is predicted without computing, agrees with what a training step takes, and decides what fits.

Run as a program, ``python tests/plans/test_memory.py MODEL PATCH BATCH``, this file measures one training step.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_fm.models.build import architecture, build_network, legal_patch
from nnunet_fm.models.registry import get_card
from nnunet_fm.plans import memory
from nnunet_fm.plans.memory import TrainingMemory, fit, gpu_bytes, training_memory

CLASSES = 5
MB = 1e6


def build(model: str, patch: list[int], adapter: str | None = None) -> Callable[[], nn.Module]:
    card = get_card(model)
    legal, strides = legal_patch(card, patch, [1.0] * card.dim)
    assert legal == patch, f"patch {patch} is not legal for {model}, {legal} is"
    supervised = card.variants["mission"].recipe.deep_supervision and card.network.deep_supervision
    entry = architecture(card, patch_size=patch, spacing=[1.0] * card.dim, strides=strides)
    return lambda: build_network(entry, 1, CLASSES, adapter=adapter, deep_supervision=supervised)


def predicted(
    model: str, patch: list[int], batch: int, adapter: str | None = None, cpu: bool = False
) -> TrainingMemory:
    return training_memory(build(model, patch, adapter), patch, batch, 1, cpu=cpu)


# --- agreement with measurement -----------------------------------------------------------------------------------


def measured_growth(model: str, patch: list[int], batch: int) -> int:
    """Growth of this process's resident memory, in bytes, from before a training step to its peak; Linux."""
    network = build(model, patch)().train()
    small = torch.randn(1, 1, *[32] * len(patch))
    memory.training_loss(network(small)).backward()  # loads the libraries' code
    network.zero_grad(set_to_none=True)
    before = resident("VmRSS")
    memory.training_loss(network(torch.randn(batch, 1, *patch))).backward()
    return resident("VmHWM") - before  # not getrusage: its maximum may be the parent process's


def resident(field: str) -> int:
    """Bytes that this process holds now (``VmRSS``) or held at its peak (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def check_prediction(model: str, patch: list[int], batch: int) -> None:
    """Measure in a fresh process, whose allocator returns freed blocks at once, so that resident means in use."""
    variables = {"NNUNET_FM_BF16": "0", "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    arguments = [model, "x".join(map(str, patch)), str(batch)]
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, *arguments],
        env={**os.environ, **variables, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    growth, ours = float(run.stdout), predicted(model, patch, batch, cpu=True).growth
    print(f"{model} {patch} batch {batch}: predicted {ours / MB:.0f} MB, measured {growth / MB:.0f} MB")
    assert abs(ours / growth - 1) < 0.25


linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and glibc's variables")

MEASURED = {
    "stunet_s": [([64, 64, 64], 2), ([96, 96, 96], 1), ([64, 128, 128], 1)],
    "stunet_b": [([64, 64, 64], 1), ([64, 96, 96], 1), ([96, 96, 96], 1)],
    "vanilla_unet3d": [([64, 64, 64], 2), ([96, 96, 96], 2), ([64, 128, 128], 4)],
    "vanilla_unet2d": [([224, 224], 2), ([256, 256], 4), ([512, 384], 4)],
    "dinov2_s": [([224, 224], 2), ([256, 256], 4), ([512, 384], 8)],
    "dinov2_b": [([224, 224], 1), ([256, 256], 4), ([512, 384], 4)],
}


@linux_only
def test_prediction_agrees_with_a_measured_step() -> None:
    check_prediction("stunet_s", [64, 64, 64], 1)


@linux_only
@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "patch", "batch"), [(model, *size) for model, sizes in MEASURED.items() for size in sizes]
)
def test_prediction_agrees_for_every_network(model: str, patch: list[int], batch: int) -> None:
    check_prediction(model, patch, batch)


# --- what is counted ----------------------------------------------------------------------------------------------


class Chain(nn.Module):
    """Layers whose memory can be counted by hand, from ``(B, 1, Y, X)`` to two classes."""

    def __init__(self, middle: nn.Module, width: int) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Conv2d(1, width, 1), middle, nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x)))


def grown(middle: Callable[[int], nn.Module], width: int = 256, edge: int = 64) -> int:
    return training_memory(lambda: Chain(middle(width), width), [edge, edge], 1, 1).growth


def test_activations_are_counted_as_autograd_keeps_them() -> None:
    """In feature maps at the peak, the start of the backward pass: those kept, and the gradients of two."""
    one_map = 256 * 64 * 64 * 4
    sigmoids = nn.Sequential(*(nn.Sigmoid() for _ in range(10)))
    assert grown(lambda width: nn.Identity()) / one_map == pytest.approx(1 + 1, abs=0.05)  # there is one gradient only
    assert grown(lambda width: nn.ReLU()) / one_map == pytest.approx(1 + 2, abs=0.05)  # keeps its result only
    assert grown(lambda width: sigmoids) / one_map == pytest.approx(10 + 2, abs=0.05)


class SelfAttention(nn.Module):
    def __init__(self, mask: bool = False) -> None:
        super().__init__()
        self.mask = nn.Parameter(torch.zeros(1)) if mask else None

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2).unflatten(2, (4, -1)).transpose(1, 2)
        n = tokens.shape[2]
        mask = None if self.mask is None else self.mask.expand(1, 4, n, n)
        return F.scaled_dot_product_attention(tokens, tokens, tokens, mask).transpose(1, 2).flatten(2).mT.view_as(x)


def test_fused_attention_keeps_no_matrix() -> None:
    matrix = 4 * 64**4 * 4  # heads, tokens squared, bytes
    assert grown(lambda width: SelfAttention(), width=64) < 0.2 * matrix
    assert grown(lambda width: SelfAttention(mask=True), width=64) > matrix


def test_parameters_gradients_and_optimiser_states() -> None:
    patch = [64, 64, 64]
    count = sum(p.numel() for p in build("stunet_s", patch)().parameters())
    sgd, adam = (training_memory(build("stunet_s", patch), patch, 1, 1, name) for name in ("sgd", "adamw"))
    assert sgd.parameters == sgd.gradients == sgd.optimizer == 4 * count
    assert adam.optimizer == 2 * sgd.optimizer
    assert adam.total == sgd.total + sgd.optimizer
    assert max(sgd.activations, sgd.gradients) <= sgd.growth <= sgd.activations + sgd.gradients
    assert sgd.total == sgd.parameters + sgd.optimizer + max(sgd.growth, 2 * sgd.gradients)
    expected = memory.GPU_FACTOR * sgd.total + memory.GPU_CONTEXT
    assert gpu_bytes(build("stunet_s", patch), patch, 1, 1, "sgd") == expected


@pytest.mark.parametrize("model", ["stunet_s", "dinov2_s"])
def test_a_frozen_encoder_needs_less(model: str) -> None:
    patch = [64] * get_card(model).dim
    full, frozen = predicted(model, patch, 2, "full"), predicted(model, patch, 2, "freeze")
    assert frozen.parameters == full.parameters
    assert frozen.gradients < full.gradients
    assert frozen.optimizer == frozen.gradients
    assert frozen.activations < full.activations


def test_growth_with_batch_and_patch() -> None:
    small, batch, patch = (
        predicted("stunet_s", edges, size).activations
        for edges, size in (([64, 64, 64], 1), ([64, 64, 64], 4), ([64, 64, 128], 1))
    )
    assert batch == pytest.approx(4 * small, rel=0.05)
    assert patch == pytest.approx(2 * small, rel=0.05)


def test_the_largest_network_is_predicted_in_seconds_and_without_memory() -> None:
    before = resident("VmHWM")
    start = time.process_time()
    huge = predicted("stunet_h", [128, 128, 128], 2)
    assert time.process_time() - start < 30
    assert resident("VmHWM") - before < 500 * MB
    assert huge.parameters > 5.8e9
    assert huge.activations > 20e9


@pytest.mark.parametrize(
    ("layer", "copies"),
    [
        (nn.Conv2d(32, 20, 3, padding=1), 32 + 32),  # channels rounded up to 16
        (nn.Conv2d(8, 32, 3, padding=1), 32),  # few channels are read as they are
        (nn.Conv2d(32, 20, 3, stride=2, padding=1), 32 + 5),
        (nn.Conv2d(32, 20, 1), 0),
    ],
)
def test_convolutions_on_the_cpu_copy_their_operands(
    layer: nn.Conv2d, copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    layer, image = layer.to("meta"), torch.empty(2, layer.in_channels, 64, 64, device="meta")
    counters = [memory._LiveBytes([], transient) for transient in (None, memory._convolution_copies)]
    for counter in counters:
        with counter, torch.no_grad():
            layer(image)
    assert counters[1].peak - counters[0].peak == copies * 2 * 64 * 64 * 4


def test_prediction_leaves_the_default_device_and_the_network_alone() -> None:
    network = Chain(nn.Identity(), 4).to("meta")
    training_memory(lambda: network, [8, 8], 1, 1)
    assert torch.empty(1).device.type == "cpu"
    assert not any(p._post_accumulate_grad_hooks for p in network.parameters())


# --- what fits ----------------------------------------------------------------------------------------------------


def halve_largest(patch: tuple[int, ...], smallest: int = 16) -> tuple[int, ...] | None:
    axis = int(np.argmax(patch))
    if patch[axis] <= smallest:
        return None
    return tuple(edge // 2 if a == axis else edge for a, edge in enumerate(patch))


def test_sequence_lowers_the_batch_first_then_the_patch() -> None:
    patches = [(64, 32), (64, 32), (64, 32), (32, 32), (16, 32), (16, 16)]
    sequence = list(zip(patches, (3, 2, 1, 1, 1, 1), strict=True))
    assert list(memory._descending((64, 32), 3, halve_largest)) == sequence
    assert fit(lambda patch, batch: 1e9, (64, 32), 3, halve_largest, 1.0) == (*sequence[-1], False)


@pytest.mark.parametrize("step", range(12))
def test_the_first_step_that_fits_is_found_with_few_predictions(step: int) -> None:
    sequence = list(memory._descending((256, 256), 4, halve_largest))
    seen: list[float] = []

    def cost(patch: tuple[int, ...], batch: int) -> float:
        seen.append(batch * float(np.prod(patch)))
        return seen[-1]

    patch, batch = sequence[step]
    assert fit(cost, (256, 256), 4, halve_largest, batch * float(np.prod(patch))) == (patch, batch, True)
    assert len(seen) == 1 if step == 0 else len(seen) <= 1 + len(sequence).bit_length()


@pytest.mark.parametrize("seed", range(50))
def test_less_memory_never_gives_a_larger_plan(seed: int) -> None:
    """Whatever the cost, even one that does not fall with the patch."""
    rng = np.random.default_rng(seed)
    noise: dict[object, float] = {}

    def cost(patch: tuple[int, ...], batch: int) -> float:
        return noise.setdefault((patch, batch), batch * float(np.prod(patch)) * rng.uniform(0.2, 2))

    patch = tuple(int(e) for e in rng.choice([32, 64, 96, 160], size=3))
    previous = 0.0
    for target in np.sort(rng.uniform(0, 2e7, size=12)):
        plan, batch, fits = fit(cost, patch, 4, halve_largest, float(target))
        assert batch in range(1, 5)
        assert min(plan) >= 16
        assert fits == (cost(plan, batch) <= target)
        assert batch * np.prod(plan) >= previous
        previous = batch * float(np.prod(plan))


def test_real_networks_fit_more_into_more_memory() -> None:
    def cost(patch: tuple[int, ...], batch: int) -> float:
        return gpu_bytes(build("stunet_s", list(patch)), patch, batch, 1, "sgd")

    def shrink(patch: tuple[int, ...]) -> tuple[int, ...] | None:
        return halve_largest(patch, smallest=64)

    plans = [fit(cost, (128, 128, 128), 2, shrink, gigabytes * 2**30) for gigabytes in (2, 4, 8, 40)]
    sizes = [batch * np.prod(patch) for patch, batch, _ in plans]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] == 2 * 128**3
    assert all(fits for *_, fits in plans)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(measured_growth(sys.argv[1], [int(edge) for edge in sys.argv[2].split("x")], int(sys.argv[3])))
