#!/usr/bin/env python
"""Time and memory of the volumetric networks beside MONAI's SwinUNETR, one process per row, in turns.

    python benchmarks/networks3d.py                        # 64³, evaluation and training, float32, one thread
    python benchmarks/networks3d.py --size 96 96 96 --modes eval --models suprem dae --rounds 5

Batch 1, one channel, 24 classes, random weights. ``eval``: forward without gradient. ``train``: forward and backward
of the mean squares of all outputs, no optimiser step. A row's time is the process's own processor time, the median of
three passes after a warm-up; a ratio is that of the medians over all rounds. Peak memory is the process's largest
resident set, less that before the first pass (imports and weights).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

OPPONENT = "monai_swinunetr"
MODELS = ("suprem", "dae", "spadnet", "misfm", "swinmm", "stunet_s", "stunet_b")
PASSES = 3


def measure(model: str, mode: str, size: list[int], bf16: bool) -> dict[str, float]:
    """Seconds of processor time and bytes of one model in this process."""
    os.environ["NNUNET_FM_BF16"] = str(int(bf16))
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = _network(model, size).train(mode == "train")
    x = torch.randn(1, 1, *size)
    before = _peak()
    seconds = []
    for _ in range(1 + PASSES):
        started = time.process_time()
        if mode == "eval":
            with torch.no_grad():
                network(x)
        else:
            network.zero_grad()
            outputs = network(x)
            loss = sum(out.square().mean() for out in ([outputs] if torch.is_tensor(outputs) else outputs))
            assert torch.is_tensor(loss)
            loss.backward()
        seconds.append(time.process_time() - started)
    return {"seconds": statistics.median(seconds[1:]), "growth": _peak() - before}


def _network(model: str, size: list[int]) -> Any:
    if model == OPPONENT:
        from monai.networks.nets import SwinUNETR

        return SwinUNETR(in_channels=1, out_channels=24, feature_size=48)
    from nnunet_fm.models.build import architecture, build_network
    from nnunet_fm.models.registry import get_card

    card = get_card(model)
    entry = architecture(card, patch_size=size, spacing=[2.0, 1.5, 1.5], strides=[[1, 1, 1], *[[2, 2, 2]] * 5])
    return build_network(entry, 1, 24, deep_supervision=card.network.deep_supervision)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def main() -> None:
    """Run the rows in turns and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--modes", nargs="+", choices=("eval", "train"), default=("eval", "train"))
    parser.add_argument("--size", nargs=3, type=int, default=[64, 64, 64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bf16", action="store_true", help="bfloat16 in ours, where the processor has it")
    parser.add_argument("--json", metavar="FILE", help="write all rows here")
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "MODE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one, options.size, options.bf16)))
        return
    rows: dict[tuple[str, str], list[dict[str, float]]] = {}
    common = [sys.executable, __file__, *(["--bf16"] if options.bf16 else []), "--size", *map(str, options.size)]
    for _ in range(options.rounds):
        for mode in options.modes:
            for model in (OPPONENT, *options.models):
                done = subprocess.run([*common, "--one", model, mode], check=True, capture_output=True, text=True)
                rows.setdefault((mode, model), []).append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{'×'.join(map(str, options.size))}, one thread, {'bfloat16 in ours' if options.bf16 else 'float32'}")
    print(f"{'':6} {'network':16} {'CPU s':>8} {'ratio':>7} {'spread':>15} {'growth MB':>10}")
    for (mode, model), measured in rows.items():
        seconds = [row["seconds"] for row in measured]
        base = statistics.median(row["seconds"] for row in rows[mode, OPPONENT])
        spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
        growth = statistics.median(row["growth"] for row in measured) / 1e6
        median = statistics.median(seconds)
        print(f"{mode:6} {model:16} {median:8.2f} {median / base:7.2f} {spread:>15} {growth:10.0f}")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump([{"mode": m, "model": n, "rows": r} for (m, n), r in rows.items()], file, indent=1)


if __name__ == "__main__":
    main()
