"""nnU-Net's training log is read, also while it is written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nnunet_fm.reporting.training_log import newest_log, parse_log
from tests.helpers.training_logs import LOG


def test_log_is_read_back() -> None:
    text = LOG.format(epoch=0, loss=-0.5, seconds=12.5) + LOG.format(epoch=1, loss="-1e-05", seconds=10)
    log = parse_log(text)
    assert log.to_dict("list") == {
        "epoch": [0, 1],
        "train_loss": [-0.5, -1e-5],
        "val_loss": [-0.25, -0.25],
        "dice": [pytest.approx(0.7), pytest.approx(0.7)],
        "seconds": [12.5, 10.0],
    }


def test_log_is_read_while_it_is_written() -> None:
    """Wherever the file ends for now, no epoch is reported that is not whole."""
    first = LOG.format(epoch=0, loss=-0.5, seconds=12.5)
    text = first + LOG.format(epoch=1, loss=-0.75, seconds=10.5)
    for end in range(len(first), len(text)):
        log = parse_log(text[:end])
        assert log["seconds"].tolist() in ([12.5], [12.5, 10.5]), text[:end].splitlines()[-1]
        assert log["epoch"].tolist() in ([0], [0, 1]) and log["train_loss"].notna().all()


def test_newest_log(tmp_path: Path) -> None:
    assert newest_log(tmp_path) is None
    for age, name in enumerate(["training_log_2026_11_9.txt", "training_log_2026_11_10.txt"]):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (100 - age, 100 - age))
    assert newest_log(tmp_path) == tmp_path / "training_log_2026_11_9.txt"
