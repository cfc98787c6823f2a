"""Which cases a model is tested on: a dataset's test set, or the validation cases of the fold."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from glob import escape
from pathlib import Path
from typing import Any

from nnunet_fm.data.folds import FOLDS, Fold, read_folds
from nnunet_fm.data.patients import seen_cases
from nnunet_fm.errors import FMError
from nnunet_fm.io.untrusted import read_object
from nnunet_fm.records.training import TrainingRecord


class NoTestCasesError(FMError, ValueError):
    """There is nothing to test a model on; the message says why."""

    code = "test-cases-missing"


@dataclass(frozen=True)
class CaseSet:
    """Cases, and where their images and references lie in the dataset's folder in ``nnUNet_raw``."""

    images: str
    labels: str
    cases: list[str]

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self)


def choose_cases(raw: Path, preprocessed: Path, fold: str, which: str, *, own: bool) -> CaseSet:
    """The cases to test on.

    Args:
        raw, preprocessed: the dataset's folders.
        fold: of the model.
        which: ``test`` is imagesTs with labelsTs, ``validation`` the validation cases of the fold, ``auto`` the first
            where it exists.
        own: whether the model was trained on this dataset; where not, fold ``all`` has all training cases to test on.

    Raises:
        NoTestCasesError: if there are none.
    """
    content = read_object(raw / "dataset.json")
    ending = content["file_ending"]
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
    """The cases to test on without those that the model was trained on, and these.

    Args:
        tested: as `choose_cases` gives it.
        raw: the tested dataset's folder, beside which those of other datasets lie.
        fold: folder of the model's fold, with the record of its training; a model of stock nnU-Net, or of an older
            version, was not trained on the cases that it was validated on, whose predictions are there.
        dataset: name of the one that the model was trained on.
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
    """The dataset's folds: its own where it has a file of them, else those that nnU-Net makes.

    Raises:
        NoTestCasesError: if there are fewer cases than folds.
    """
    if folds := read_folds(cases, preprocessed, raw):
        return folds
    raise NoTestCasesError(f"{raw.name} has {len(cases)} labelled cases, too few for nnU-Net's {FOLDS} folds")


def label_names(folder: Path, ending: str) -> set[str]:
    """Cases of a folder of label maps; none if it does not exist. Hidden files do not count."""
    files = folder.glob(f"[!.]*{escape(ending)}") if folder.is_dir() else ()
    return {file.name[: -len(ending)] for file in files}


def image_names(folder: Path, ending: str) -> set[str]:
    """Cases of a folder of images, whose names end in the number of the channel."""
    return {name[:-5] for name in label_names(folder, ending) if name[-5:] == "_0000"}
