"""Section: networks, their costs, and score against cost."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pandas as pd

from nnunet_fm.records.training import Speed
from nnunet_fm.reporting.figures.scatter import MOST_NAMES, scatter_figure
from nnunet_fm.reporting.sections.context import Context
from nnunet_fm.reporting.sections.elements import Column, Section, Table
from nnunet_fm.reporting.sections.numbers import gibibytes, millions, percent


def architecture_section(context: Context) -> Section:
    """Table of the networks and scatter plots."""
    section = Section("models", "Models and cost")
    table = architecture_frame(context)
    if not len(table):
        section.missing.append(
            "Models and cost: no training left a record. Trainings with fm_trainer write training_record.json into "
            "the fold's folder; stock nnU-Net is recorded when it is trained by fm_trainer_stock, as the controls of "
            "a study are."
        )
        return section
    one_machine = table["hardware"].nunique() == 1
    section.table(
        Table(
            "models",
            "Networks as they were trained. Speed: training samples per second, mean ± standard deviation over "
            "iterations, the first 50 left out; waiting: share of that time spent waiting for data. Memory: the "
            "largest resident memory of the training process, and the largest allocated on the GPU."
            + (f" Hardware: {table['hardware'].iloc[0]}." if one_machine else ""),
            table,
            [
                Column("label", "Model", wrap=True),
                Column("patch", "Patch [voxels]", str),
                Column("batch", "Batch", str),
                Column("parameters", "Parameters [M]", millions),
                Column("parameters trained", "Trained [M]", millions),
                Column("samples/s", "Samples/s", ".2f", sd="samples/s sd"),
                Column("waiting share", "Waiting [%]", percent),
                Column("peak memory", "Memory [GiB]", gibibytes),
                *[Column("GPU memory", "GPU [GiB]", gibibytes)] * bool(table["GPU memory"].notna().any()),
                *[Column("hardware", "Hardware", wrap=True)] * (not one_machine),
            ],
            context.controls,
        )
    )
    without = [label for label in context.labels if label not in set(table["label"])]
    if without:
        section.missing.append(f"Cost of {', '.join(without)}: no training record.")
    if not one_machine:
        section.warn("The models were trained on different hardware, so that their speeds do not compare.")
    _scatter(context, section, table)
    return section


def architecture_frame(context: Context) -> pd.DataFrame:
    """One row per label that has records."""
    rows = []
    for label in context.labels:
        records = context.records(label)
        if not records:
            continue
        mean, sd, waiting = pooled_speed([record.speed for record in records if record.speed is not None])
        rows.append(
            {
                "label": label,
                "patch": _distinct(" × ".join(map(str, record.patch_size)) for record in records),
                "batch": _distinct(str(record.batch_size) for record in records),
                "parameters": max(record.parameters for record in records),
                "parameters trained": max(record.parameters_trained for record in records),
                "samples/s": mean,
                "samples/s sd": sd,
                "waiting share": waiting,
                "peak memory": max((record.peak_memory or math.nan for record in records), default=math.nan),
                "GPU memory": max((record.device_memory or math.nan for record in records), default=math.nan),
                "hardware": _distinct(_hardware(record.device, record.processor, record.threads) for record in records),
            }
        )
    return pd.DataFrame(rows)


def pooled_speed(speeds: list[Speed]) -> tuple[float, float, float]:
    """Mean speed, standard deviation and waiting share over the iterations of several trainings."""
    total = sum(speed.iterations for speed in speeds)
    if not total:
        return math.nan, math.nan, math.nan
    mean = sum(speed.iterations * speed.mean for speed in speeds) / total
    squares = sum(speed.iterations * (speed.sd**2 + (speed.mean - mean) ** 2) for speed in speeds) / total
    # The waiting share is per second, so that it is weighted by the seconds.
    seconds = sum(speed.iterations / speed.mean for speed in speeds if speed.mean > 0)
    waiting = sum(speed.waiting_share * speed.iterations / speed.mean for speed in speeds if speed.mean > 0)
    return mean, math.sqrt(squares), waiting / seconds if seconds else math.nan


def _hardware(device: str, processor: str, threads: int) -> str:
    return f"{processor}, {threads} threads" if device == "cpu" else device


def _distinct(words: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(words))


def _scatter(context: Context, section: Section, table: pd.DataFrame) -> None:
    scored = context.table.dropna(subset="mean")[["label", "rank", "control", "mean"]].rename(columns={"mean": "y"})
    panels = []
    for key, axis in (("parameters", "parameters"), ("samples/s", "training samples per second")):
        points = table[["label", key]].rename(columns={key: "x"}).merge(scored, on="label")
        points = points[points["x"] > 0]
        if len(points) > 1:
            panels.append((axis, points))
    if not panels:
        return
    ranked = " Numbers are the ranks." if any(len(points) > MOST_NAMES for _, points in panels) else ""
    section.figure(
        context.chart(
            scatter_figure(panels, context.metric.axis), f"{context.metric.name} against cost, a point per model"
        ),
        f"{context.metric.name} {context.domain} against parameters in total and training speed; hollow: "
        f"controls.{ranked}",
    )
