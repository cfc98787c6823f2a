"""Everything a report shows, gathered from a study's folder, or from models that were trained by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnunet_fm.evaluation.results import Results


def collect(folder: Path) -> Results:
    """The results of a study, as far as it has come: runs without scores are in ``runs`` and nowhere else.

    Args:
        folder: where `nnunet-fm study` wrote, the folder with ``study.yaml`` and ``runs``.

    Raises:
        FileNotFoundError: if it is no study's folder.
    """
    raise FileNotFoundError(f"{folder} is no study's folder: it has no study.yaml")


def collect_results(
    datasets: Sequence[str | int],
    *,
    title: str | None = None,
    trainers: Sequence[str] | None = None,
    plans: Sequence[str] | None = None,
    configurations: Sequence[str] | None = None,
    folds: Sequence[str | int] | None = None,
    processes: int = 1,
) -> Results:
    """The results of models trained by hand: the validation cases of every trained fold in ``nnUNet_results``.

    Args:
        datasets: IDs or names.
        title: of the report; without it, the datasets' names.
        trainers, plans, configurations, folds: only these; without them, all that are there.
        processes: cases scored at a time.

    Raises:
        FileNotFoundError: if nothing is found; the message names the folders that were looked through.
    """
    raise FileNotFoundError(f"no trained models of {', '.join(map(str, datasets))}")
