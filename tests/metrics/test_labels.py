"""Labels of a dataset as nnU-Net reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from nnunetv2.evaluation import evaluate_predictions

from nnunet_fm.metrics.labels import foreground, read_dataset_json
from tests.helpers.errors import fails


def test_foreground_reads_labels_as_nnunet() -> None:
    labels = {"background": 0, "organ": [1, 2, 3], "tumour": 2, "never": 7, "ignore": 9}
    classes, ignore = foreground(labels)
    assert classes == {"organ": (1, 2, 3), "tumour": (2,), "never": (7,)} and ignore == 9
    mask = evaluate_predictions.region_or_label_to_mask(np.arange(10), classes["organ"])
    assert np.flatnonzero(mask).tolist() == [1, 2, 3]


@pytest.mark.parametrize("text", ["[", "[]", "{}", '{"labels": {}}', '{"labels": {"0": "background"}}'])
def test_a_dataset_json_without_usable_labels_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with fails("labels-table", "dataset.json", "labels"):
        read_dataset_json(tmp_path / "dataset.json")
