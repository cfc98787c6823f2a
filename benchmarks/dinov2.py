"""DINOv2's encoder against timm's own, equal weights, as bfloat16 where the processor has it and in float32."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.encoder import as_in_a_network
from benchmarks.harness import SIDES, Benchmark, Side
from benchmarks.measure import Measurement, measure, threads


def _encoder(side: Side, small: bool) -> tuple[Callable[[Any], Any], int]:
    """Images ``(B, 3, edge, edge)`` -> tokens of the patches after the last norm, and the edge; equal weights."""
    import timm
    import torch

    from nnunet_fm.backbones import create_backbone

    torch.manual_seed(0)
    torch.set_num_threads(threads())
    size, edge = ("small", 56) if small else ("base", 224)
    theirs = timm.create_model(f"vit_{size}_patch14_dinov2", img_size=edge, num_classes=0).eval()
    if side == "opponent":
        return lambda x: theirs.forward_features(x)[:, theirs.num_prefix_tokens :], edge
    backbone: Any = create_backbone(f"dinov2_{size[0]}", edge)
    backbone.vit.load_state_dict(theirs.state_dict())
    backbone.eval()
    last = backbone.depth - 1
    return lambda x: backbone.features(x, (last,), norm="all")[0].flatten(2).transpose(1, 2), edge


def run(side: Side, folder: Path, small: bool, *, float32: bool) -> Measurement:
    """Forward of eight random images."""
    import torch

    os.environ.update({"NNUNET_FM_BF16": "0"} if float32 else {})
    encode, edge = _encoder(side, small)
    x = torch.randn(8, 3, edge, edge)

    def step() -> None:
        with torch.inference_mode(), as_in_a_network(side):
            encode(x)

    return measure(step, repeats=5)


def compare(folder: Path, small: bool, *, float32: bool) -> dict[str, float]:
    """Largest difference of the tokens of one image."""
    import torch

    os.environ.update({"NNUNET_FM_BF16": "0"} if float32 else {})
    tokens = []
    for side in SIDES:
        encode, edge = _encoder(side, small)
        x = torch.randn(1, 3, edge, edge, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode(), as_in_a_network(side):
            tokens.append(encode(x).float())
    ours, theirs = tokens
    return {
        "largest difference of the tokens, in standard deviations": float((ours - theirs).abs().max() / theirs.std())
    }


BENCHMARKS = tuple(
    Benchmark(name, title, partial(run, float32=float32), None, partial(compare, float32=float32))
    for name, title, float32 in (
        ("dinov2", "DINOv2-B encoder, 8 images of 224², bf16 where the processor has it", False),
        ("dinov2-float32", "DINOv2-B encoder, 8 images of 224², float32", True),
    )
)
