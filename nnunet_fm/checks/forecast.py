"""Forecast the memory for the largest prediction of a dataset, by nnU-Net and by this package, and disk space.

Memory is counted from the code, for logits ``(K, …)`` in half precision of N voxels in the network's grid that become a
label map of V voxels in the image's grid. nnU-Net's default resampling takes a copy of the logits in float64, the
resampled logits in half precision, two float64 images for one class at a time, and labels of 64 bits. The export of
this package takes logits, label map and blocks.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from nnunet_fm.checks.dataset import Grid, KnownDataset
from nnunet_fm.checks.finding import NOTE, OK, PROBLEM, Check, size
from nnunet_fm.checks.machine import batch_bytes
from nnunet_fm.cpu.limits import memory

PROGRAM = 700 * 10**6
"""Resident bytes of a process with PyTorch and nnU-Net, before it has read anything."""
BLOCKS = 50 * 10**6
"""Bytes of the blocks that our export keeps besides logits and label map."""
EXPORTS = 3
"""Default number of processes in which nnUNetv2_predict exports (-nps)."""


@dataclass(frozen=True)
class Forecast:
    """Peak memory of predicting one case in bytes, without the network itself.

    Attributes:
        stock: nnUNetv2_predict with one process that exports (-nps 1).
        stock_default: nnUNetv2_predict with its default number of processes, each with a case of this size.
        ours: nnunet-fm predict.
    """

    stock: int
    stock_default: int
    ours: int


def forecast(grid: Grid, voxels: int, outputs: int, channels: int, *, linear: bool = True) -> Forecast:
    """Forecast the memory of predicting one case.

    Args:
        grid: grid of the image.
        voxels: number of voxels of the image in the network's grid.
        outputs: number of channels of the logits.
        channels: number of channels of the image.
        linear: whether our export goes block by block; else it is nnU-Net's.
    """
    image = prod(grid[0])
    logits = 2 * outputs * voxels
    network = 4 * channels * voxels + logits + 2 * voxels  # input, sums, and how often each voxel was predicted
    if image == voxels:  # nothing is resampled
        export = logits + 8 * image
    else:
        export = logits + 8 * outputs * voxels + 2 * outputs * image + 2 * 8 * image
    reading = 3 * 4 * channels * image
    sent = logits  # a pickled copy, on its way to a process that exports
    own = logits + image + BLOCKS if linear else export
    return Forecast(
        stock=2 * PROGRAM + network + sent + export,
        stock_default=(1 + EXPORTS) * PROGRAM + network + sent + EXPORTS * export,
        ours=PROGRAM + max(network + reading, own),
    )


def predicting(dataset: KnownDataset) -> Iterator[Check]:
    """Check the memory for predicting the dataset's largest case."""
    planned = dataset.planned

    def voxels(case: str) -> int:
        grid = dataset.cases[case]
        return planned.voxels(grid) if planned else prod(grid[0])

    def need(case: str) -> Forecast:
        linear = planned.linear if planned else True
        return forecast(dataset.cases[case], voxels(case), dataset.outputs, dataset.channels, linear=linear)

    largest = max(dataset.cases, key=lambda case: need(case).stock)
    shape, spacing = dataset.cases[largest]
    found = need(largest)
    grid = f"{' × '.join(map(str, shape))} voxels of {' × '.join(f'{s:.3g}' for s in spacing)} mm"
    where = f"{planned.plans}, {planned.configuration}" if planned else "not planned yet: the image's own grid"
    yield Check("largest case", OK, f"{dataset.name}, {largest}: {grid}, {dataset.outputs} outputs ({where})")
    detail = (
        f"besides the network, nnunet-fm predict needs {size(found.ours)}; nnUNetv2_predict {size(found.stock)} with "
        f"one process that exports (-nps 1), {size(found.stock_default)} with its {EXPORTS}"
    )
    machine = memory()
    if machine is None:
        yield Check("prediction", OK, detail)
        return
    total, left = machine
    detail = f"{detail}; {size(left)} of {size(total)} are left"
    if found.ours > left:
        cure = "predict elsewhere, or plan with a coarser --spacing"
        if found.ours <= total:
            cure = "end what else runs here"
        yield Check("prediction", PROBLEM, detail, cure)
    elif found.stock_default > left:
        stock = " or nnUNetv2_predict -nps 1" if found.stock <= left else ""
        what = "nnUNetv2_predict is likely to be killed"
        yield Check("prediction", NOTE, f"{detail}: {what}", f"predict with nnunet-fm predict -npp 0 -nps 0{stock}")
    else:
        yield Check("prediction", OK, detail)


def training_batch(dataset: KnownDataset) -> int | None:
    """Bytes of a training batch of the dataset's plans; None without plans."""
    planned = dataset.planned
    return batch_bytes(prod(planned.patch), planned.batch, dataset.channels) if planned else None


def preprocessed(dataset: KnownDataset) -> Iterator[Check]:
    """Check that all preprocessed cases fit on their disk, uncompressed."""
    planned, folder = dataset.planned, os.environ.get("nnUNet_preprocessed")
    if planned is None or not folder or not os.path.isdir(folder):
        return
    need = sum(planned.voxels(grid) for grid in dataset.cases.values()) * (4 * dataset.channels + 1)
    free = shutil.disk_usage(folder).free
    detail = f"all cases take up to {size(need)} uncompressed, {size(free)} are free"
    cure = f"export nnUNet_preprocessed to another disk, or make room on that of {folder}"
    yield Check("preprocessed", *((NOTE, detail, cure) if need > free else (OK, detail)))
