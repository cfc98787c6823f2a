"""SuPreM's Swin UNETR against MONAI's: batch 1, one channel, 24 classes, float32, random weights."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import Benchmark, Goal, Side
from benchmarks.measure import Measurement, measure, threads

CLASSES = 24


def _network(side: Side, features: int) -> Any:
    if side == "opponent":
        from monai.networks.nets import SwinUNETR

        return SwinUNETR(in_channels=1, out_channels=CLASSES, feature_size=features)
    from nnunet_fm.models.build import build_network

    name = "nnunet_fm.networks.swinunetr.SwinUNETR"
    return build_network({"network_class_name": name, "arch_kwargs": {"feature_size": features}}, 1, CLASSES)


def run(side: Side, folder: Path, small: bool, *, training: bool) -> Measurement:
    """Forward, in training also backward of the mean square, without a step of an optimiser."""
    os.environ["NNUNET_FM_BF16"] = "0"
    import torch

    torch.set_num_threads(threads())
    torch.manual_seed(0)
    network = _network(side, 12 if small else 48).train(training)
    x = torch.randn(1, 1, 64, 64, 64)

    def step() -> None:
        network.zero_grad()
        with torch.set_grad_enabled(training):
            out = network(x)
        if training:
            out.square().mean().backward()

    return measure(step, repeats=2)


BENCHMARKS = (
    Benchmark(
        "swinunetr",
        "Swin UNETR, forward and backward, 64³",
        partial(run, training=True),
        goals={"wall": Goal(1.1, 1.3)},
    ),
    Benchmark("swinunetr-forward", "Swin UNETR, forward, 64³", partial(run, training=False)),
)
