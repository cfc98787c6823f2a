"""SAM-B's image encoder against segment-anything's, float32, equal weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import SIDES, Benchmark, Goal, Side
from benchmarks.measure import Measurement, measure, threads

SMALL_EDGE = 48


def _encoder(side: Side, edge: int, small: bool) -> tuple[Callable[[Any], Any], list[Any]]:
    """An encoder with its neck for square images, and its parameters; the same random weights on both sides."""
    import torch
    from segment_anything.modeling import ImageEncoderViT
    from torch import nn

    from nnunet_fm.backbones import create_backbone
    from nnunet_fm.heads.sam_base import sam_neck

    torch.manual_seed(0)
    torch.set_num_threads(threads())
    depth, global_blocks = (2, (1,)) if small else (12, (2, 5, 8, 11))
    official = ImageEncoderViT(
        img_size=edge, patch_size=16, embed_dim=768, depth=depth, num_heads=12, mlp_ratio=4, out_chans=256,
        qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6), use_rel_pos=True, window_size=14,
        global_attn_indexes=global_blocks,
    )  # fmt: skip
    for name, parameter in official.named_parameters():
        if "pos" in name:
            nn.init.normal_(parameter, std=0.02)
    if side == "opponent":
        return official.eval(), list(official.parameters())
    backbone: Any = create_backbone("sam_b", edge, depth=depth, global_blocks=global_blocks)
    backbone.neck = sam_neck(backbone.embed_dim)
    backbone.load_state_dict(backbone.from_official(official.state_dict()))
    backbone.eval()
    return lambda x: backbone.features(x, (depth - 1,))[0], list(backbone.parameters())


@contextmanager
def as_in_a_network(side: Side) -> Iterator[None]:
    """What every network of ours enters when it is called, of which the encoder is a part."""
    import torch

    from nnunet_fm.cpu.onednn_linear import fast_products
    from nnunet_fm.networks.base import cpu_autocast

    device = torch.device("cpu")
    if side == "opponent":
        yield
        return
    with cpu_autocast(device), fast_products(device):
        yield


def run(side: Side, folder: Path, small: bool, *, edge: int, batch: int, training: bool = False) -> Measurement:
    """Forward, in training also backward, of random images."""
    import torch

    os.environ["NNUNET_FM_BF16"] = "0"
    edge = SMALL_EDGE if small else edge
    encode, parameters = _encoder(side, edge, small)
    x = torch.randn(batch, 3, edge, edge)

    def step() -> None:
        with torch.set_grad_enabled(training), as_in_a_network(side):
            out = encode(x)
        if training:
            out.square().mean().backward()
            for parameter in parameters:
                parameter.grad = None

    return measure(step, repeats=1 if edge > 224 else 3)


def compare(folder: Path, small: bool, *, edge: int) -> dict[str, float]:
    """Largest difference of the maps of one image."""
    import torch

    os.environ["NNUNET_FM_BF16"] = "0"
    edge = SMALL_EDGE if small else edge
    x = torch.randn(1, 3, edge, edge, generator=torch.Generator().manual_seed(1))
    maps = []
    for side in SIDES:
        with torch.no_grad(), as_in_a_network(side):
            maps.append(_encoder(side, edge, small)[0](x))
    ours, theirs = maps
    return {"largest difference of the maps, in standard deviations": float((ours - theirs).abs().max() / theirs.std())}


def _benchmark(name: str, title: str, edge: int, batch: int, training: bool = False, **goals: Goal) -> Benchmark:
    measured = partial(run, edge=edge, batch=batch, training=training)
    return Benchmark(name, title, measured, None, partial(compare, edge=edge), goals)


BENCHMARKS = (
    _benchmark("encoder-224", "SAM-B encoder, 4 images of 224²", 224, 4, wall=Goal(1.3, 1.5)),
    _benchmark("encoder-1024", "SAM-B encoder, 1 image of 1024²", 1024, 1, wall=Goal(1.3, 1.5), memory=Goal(2, 3)),
    _benchmark("encoder-224-training", "SAM-B encoder, forward and backward, 4 images of 224²", 224, 4, True),
)
