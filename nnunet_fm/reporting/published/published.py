"""Read published numbers: each test of a model as a cell, and the printed summary tables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

import pandas as pd

from nnunet_fm.errors import InvalidValueError
from nnunet_fm.metrics.scores_table import VALUE
from nnunet_fm.reporting.generalisation import MODEL

_A = (
    "Investigating Foundation Models in Medical Imaging, master's thesis, Aalto University, 2024, "
    "https://aaltodoc.aalto.fi/items/50659f51-c23e-4c41-8f7a-bbe5edebcf13"
)
_B = (
    "Cekmeceli, Training and Tuning Strategies for Foundation Models in Medical Imaging, master's thesis, ETH Zurich, "
    "2024; Cekmeceli et al., Do Vision Foundation Models Enhance Domain Generalization in Medical Image Segmentation?, "
    "arXiv 2409.07960"
)

_SINGLE = "Each number is of one training, without any spread."
_REIN = (
    "The code behind rein and rein_lora discards what the adapter returns, so that these rows are very probably of "
    "frozen backbones; a working adapter will not reproduce them."
)
_SWAPPED = "NCI has 10 training and 15 test volumes: the two files were swapped."


@dataclass(frozen=True)
class PublishedStudy:
    """One published comparison.

    Args:
        title: title of the comparison.
        citation: publication.
        tables: numbers of the tables with single tests.
        notes: caveats for a comparison.
    """

    title: str
    citation: str
    tables: tuple[str, ...]
    notes: tuple[str, ...]


STUDIES: Mapping[str, PublishedStudy] = {
    "thesis_a": PublishedStudy("Six 3D models and a plain U-Net", _A, ("section 4.2",), (_SINGLE,)),
    "thesis_b_decode_heads": PublishedStudy(
        "Twelve decode heads on frozen 2D backbones", _B, ("A.1",), (_SINGLE, _SWAPPED, "MedSAM was not tested on NCI.")
    ),
    "thesis_b_fine_tuning": PublishedStudy(
        "Four adapters of 2D backbones", _B, ("A.6", "A.8", "A.10"), (_SINGLE, _REIN, _SWAPPED)
    ),
    "thesis_b_generalisation": PublishedStudy(
        "2D backbones of three sizes and three benchmarks",
        _B,
        ("A.13", "A.15", "A.17", "A.19"),
        (_SINGLE, _REIN, _SWAPPED),
    ),
    "thesis_b_self_training": PublishedStudy(
        "Self-training with three labelled volumes",
        _B,
        ("A.21", "A.22", "A.23", "A.24"),
        (
            _SINGLE,
            _REIN,
            _SWAPPED,
            "On the spine, the labelled data were very probably the first slices of every volume, not three volumes.",
        ),
    ),
}
"""Published comparisons by id."""

_OTHER_NAMES = {
    "hcp1": "HCP_T1",
    "hcp2": "HCP_T2",
    "abidec": "ABIDE_CALTECH",
    "abides": "ABIDE_STANFORD",
    "mrsegv": "MRSpineSeg",
    "mrspinesegv": "MRSpineSeg",
    "hanseg": "HaNSeg_CT",
}


def dataset_key(name: str) -> str | None:
    """Published dataset of a dataset's name; None if nothing was published for it.

    Names are compared without nnU-Net's number, case and punctuation: ``Dataset521_HCP_T1``, ``HCP-T1`` and the
    publication's ``HCP1`` are all ``HCP_T1``.
    """
    plain = re.sub(r"[\W_]", "", re.sub(r"^Dataset\d{3}_", "", name)).casefold()
    return _datasets().get(plain, _OTHER_NAMES.get(plain))


def published_cells(study: str) -> pd.DataFrame:
    """Read all published tests, with columns of `nnunet_fm.reporting.generalisation.cells`.

    Dice lies in [0, 1]. Tests that were not made, such as MedSAM on NCI, have no row. ``method`` is empty on the
    diagonal of the tables of self-training, which shows the model before adaptation.

    Args:
        study: one of `STUDIES`.

    Returns:
        Columns ``table``, ``label``, ``trained`` (the same), model, head, adapter, method, anatomy, source, target and
        ``value``.

    Raises:
        ValueError: for an unknown study.
    """
    if study not in STUDIES:
        raise InvalidValueError(
            f"there is no published study '{study}'; there are {', '.join(STUDIES)}", code="published-unknown"
        )
    if study == "thesis_a":
        table = published_results().dropna(subset="dice").rename(columns={"dice": VALUE})
        table = table.assign(table="section 4.2", head="", method="", source=table["dataset"], target=table["dataset"])
    else:
        table = _read("thesis_b_cells").rename(columns={"dice": VALUE})
        table = table[table["table"].isin(STUDIES[study].tables)]
        table[VALUE] /= 100
    label = ["_".join(part for part in parts if part) for parts in table[MODEL].itertuples(index=False)]
    columns = ["table", "label", "trained", *MODEL, "method", "anatomy", "source", "target", VALUE]
    return table.assign(label=label, trained=label)[columns].reset_index(drop=True)


def published_summary(table: str) -> pd.DataFrame:
    """Read a printed summary table, with Dice in per cent.

    Args:
        table: number of the table, such as ``4.2``.

    Returns:
        Columns of the table, among model, head, adapter, anatomy, rank, ``trainable_m`` (trainable parameters in
        millions), DS, DG, OV, shift, their differences and ``loss %``.

    Raises:
        ValueError: for an unknown table.
    """
    summaries = _read("thesis_b_summaries")
    if table not in set(summaries["table"]):
        raise InvalidValueError(
            f"there is no published table '{table}'; there are {', '.join(summaries['table'].unique())}",
            code="published-unknown",
        )
    found = summaries[summaries["table"] == table].drop(columns="table").reset_index(drop=True)
    filled = found.notna() & (found != "")
    found = found.loc[:, filled.any()]
    return found.astype({"rank": int}) if "rank" in found else found


def published_architectures() -> pd.DataFrame:
    """Table 4.1 of the 3D comparison: model, patch in voxels (z, y, x), parameters in millions, samples per second."""
    return _read("thesis_a_models").drop(columns="table")


def published_results() -> pd.DataFrame:
    """Dice and iterations until convergence in the text of the 3D comparison; NaN if not stated.

    ``iterations`` are from its section 4.4, ``iterations_abstract`` from its abstract; they differ.
    """
    return _read("thesis_a_results")


def beside(cells: pd.DataFrame, study: str) -> pd.DataFrame:
    """Own cells with a published counterpart.

    Args:
        cells: Dice cells from `nnunet_fm.reporting.generalisation.cells`.
        study: one of `STUDIES`.

    Returns:
        Cells with equal model, head, adapter, method, source and target, with columns ``published`` and
        ``difference`` (own minus published). Controls and models of fewer training cases have no counterpart.
    """
    published = published_cells(study).rename(columns={VALUE: "published"})
    keys = [*MODEL, "method", "source_key", "target_key"]
    published = published.rename(columns={"source": "source_key", "target": "target_key"})[[*keys, "published"]]
    own = cells[(cells["control"] == "") & cells["train_cases"].isna()]
    own = own.assign(source_key=own["source"].map(dataset_key), target_key=own["target"].map(dataset_key))
    own = own.dropna(subset=["source_key", "target_key"]).astype({"source_key": object, "target_key": object})
    both = own.merge(published, on=keys).drop(columns=["source_key", "target_key"])
    return both.assign(difference=both[VALUE] - both["published"])


@cache
def _datasets() -> dict[str, str]:
    """Published datasets by plain name."""
    names = [*_read("thesis_b_cells")["source"].unique(), *_read("thesis_a_results")["dataset"].unique()]
    return {name.replace("_", "").casefold(): name for name in names}


def _read(name: str) -> pd.DataFrame:
    """Read a table of the package; empty text stays text."""
    text = dict.fromkeys(["table", *MODEL, "method", "anatomy", "source", "target", "dataset"], str)
    file = resources.files("nnunet_fm.reporting.published") / f"{name}.csv"
    with file.open(encoding="utf-8") as stream:
        table = pd.read_csv(stream, dtype=text, keep_default_na=False, na_values={})
    for column in table.columns.difference(list(text)):
        table[column] = pd.to_numeric(table[column])
    return table
