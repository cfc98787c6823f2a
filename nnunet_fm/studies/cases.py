"""Choose the cases that a model is tested on: a dataset's test set, or the validation cases of the fold."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from glob import escape
from pathlib import Path
from typing import Any

from nnunet_fm.data.folds import FOLDS, Fold, read_folds
from nnunet_fm.data.patients import seen_cases
from nnunet_fm.errors import FMError
from nnunet_fm.io.dataset_json import canonical
from nnunet_fm.io.untrusted import read_object
from nnunet_fm.records.training import TrainingRecord


class NoTestCasesError(FMError, ValueError):
    """No cases to test a model on; the message says why."""

    code = "test-cases-missing"


@dataclass(frozen=True)
class CaseSet:
    """Cases, with the subfolders of their images and references in the dataset's raw folder."""

    images: str
    labels: str
    cases: list[str]

    def as_json(self) -> dict[str, Any]:
        """JSON value for a file."""
        return asdict(self)


def choose_cases(raw: Path, preprocessed: Path, fold: str, which: str, *, own: bool) -> CaseSet:
    """Choose the cases to test on.

    Args:
        raw, preprocessed: the dataset's folders.
        fold: fold of the model.
        which: ``test`` is imagesTs with labelsTs, ``validation`` the validation cases of the fold, ``auto`` the first
            where it exists.
        own: whether the model was trained on this dataset; else fold ``all`` is tested on all training cases.

    Raises:
        NoTestCasesError: if there are none.
    """
    ending = dataset_json(raw)["file_ending"]
    labelled = label_names(raw / "labelsTs", ending)
    if which == "test" or (which == "auto" and labelled):
        cases = sorted(labelled & image_names(raw / "imagesTs", ending))
        if not cases:
            raise NoTestCasesError(f"{raw} has no cases in imagesTs with a label map in labelsTs: set test: validation")
        return CaseSet("imagesTs", "labelsTs", cases)
    there = sorted(label_names(raw / "labelsTr", ending) & image_names(raw / "imagesTr", ending))
    if fold == "all":
        if own:
            raise NoTestCasesError(
                f"fold 'all' keeps no case of {raw.name} back, and it has no imagesTs with labelsTs: "
                "train a numbered fold"
            )
        return CaseSet("imagesTr", "labelsTr", there)
    splits = read_splits(preprocessed, raw, there)
    if int(fold) >= len(splits):
        raise NoTestCasesError(f"the split of {raw.name} has {len(splits)} folds, and no fold {fold}")
    validated = sorted(str(case) for case in splits[int(fold)]["val"])
    if not validated:
        raise NoTestCasesError(f"fold {fold} of the split of {raw.name} has no validation cases to test on")
    return CaseSet("imagesTr", "labelsTr", validated)


def without_seen(tested: CaseSet, raw: Path, fold: Path, dataset: str) -> tuple[CaseSet, list[str]]:
    """Split test cases into those that the model was not trained on, and those that it was.

    Args:
        tested: test cases from `choose_cases`.
        raw: raw folder of the tested dataset, beside those of other datasets.
        fold: folder of the model's fold, with the record of its training. Without a record (stock nnU-Net, older
            versions), the cases with a validation prediction in this folder are those that were not trained on.
        dataset: name of the dataset that the model was trained on.
    """
    record = TrainingRecord.read(fold)
    if record is not None and record.trained_cases is not None:
        trained = record.seen
    else:
        validated = {file.name.split(".")[0] for file in (fold / "validation").glob("[!.]*") if file.is_file()}
        known = tested.images == "imagesTr" and raw.name == dataset and validated - {"summary"}
        trained = {dataset: [case for case in tested.cases if case.split(".")[0] not in validated] if known else []}
    seen = {
        case
        for name, cases in trained.items()
        for case in seen_cases(tested.cases, raw, cases, raw.parent / name, images=tested.images)
    }
    return replace(tested, cases=[case for case in tested.cases if case not in seen]), sorted(seen)


def read_splits(preprocessed: Path, raw: Path, cases: list[str]) -> list[Fold]:
    """Read the dataset's folds from its file, or make those of nnU-Net.

    Raises:
        NoTestCasesError: if there are fewer cases than folds.
    """
    if folds := read_folds(cases, preprocessed, raw):
        return folds
    raise NoTestCasesError(f"{raw.name} has {len(cases)} labelled cases, too few for nnU-Net's {FOLDS} folds")


def dataset_json(folder: Path) -> dict[str, Any]:
    """Content of a folder's ``dataset.json``, with channels and labels as numbers."""
    return canonical(read_object(folder / "dataset.json"))


def label_names(folder: Path, ending: str) -> set[str]:
    """Names of the cases in a folder of label maps, without hidden files; empty if the folder does not exist."""
    files = folder.glob(f"[!.]*{escape(ending)}") if folder.is_dir() else ()
    return {file.name[: -len(ending)] for file in files}


def image_names(folder: Path, ending: str) -> set[str]:
    """Names of the cases in a folder of images, whose file names end in the number of the channel."""
    return {name[:-5] for name in label_names(folder, ending) if name[-5:] == "_0000"}
