"""Find datasets by number or name; name the command that makes a missing one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_fm.errors import code_of
from nnunet_fm.io.dataset_json import canonical
from nnunet_fm.io.dataset_names import find_datasets, several, short_name
from nnunet_fm.io.untrusted import read_object
from nnunet_fm.studies.schema import StudyError

NUMBERED = re.compile(r"Dataset(\d{3})_(.+)", re.DOTALL)


@dataclass(frozen=True)
class Dataset:
    """A dataset of a study.

    Attributes:
        name: name of nnU-Net's folder, ``Dataset501_AortaSeg24``; without a folder, the name in the study.
        folder: folder in ``nnUNet_raw``, None if it is missing.
    """

    name: str
    folder: Path | None

    @property
    def short(self) -> str:
        """The name without the number."""
        return short_name(self.name)

    @property
    def number(self) -> int:
        """nnU-Net's number; 0 if the study names a missing dataset without it."""
        match = NUMBERED.fullmatch(self.name)
        return int(match[1]) if match else int(self.name) if self.name.isdigit() else 0

    def is_called(self, word: str) -> bool:
        """Whether a word is the dataset's number, full name, or name without the number."""
        return word in (self.name, self.short) or (word.isdigit() and int(word) == self.number)

    @property
    def json(self) -> dict[str, Any]:
        """Content of ``dataset.json``; empty if the dataset is missing."""
        if self.folder is None:
            return {}
        file = self.folder / "dataset.json"
        try:
            content = canonical(read_object(file))
        except FileNotFoundError:
            raise StudyError(
                f"{self.folder} is no dataset: it has no dataset.json", code="dataset-json-missing"
            ) from None
        except ValueError as error:
            raise StudyError(f"{file} is no JSON: {error}", code=code_of(error, "json-invalid")) from None
        return content


def find_dataset(given: str, raw: Path) -> Dataset:
    """Find a dataset by its number, full name, or name without the number.

    Raises:
        StudyError: if several fit.
    """
    folders = sorted(p for p in raw.glob("Dataset[0-9][0-9][0-9]_*") if p.is_dir())
    named = {p: match for p in folders if (match := NUMBERED.fullmatch(p.name))}
    if given.isdigit():
        fitting = [p for p, match in named.items() if int(match[1]) == int(given)]
    else:
        fitting = [p for p in named if p.name == given] or [p for p, match in named.items() if match[2] == given]
    if len(fitting) > 1:
        raise StudyError(
            f"'{given}' is {' and '.join(p.name for p in fitting)} in {raw}: give the one that is meant its full name",
            code="dataset-ambiguous",
        )
    if not fitting:
        return Dataset(given, None)
    found = Dataset(fitting[0].name, fitting[0])
    if len(names := find_datasets().get(found.number, {})) > 1:  # steps call nnU-Net's commands with the number
        raise StudyError(f"{several(found.number, names)}: rename one of them in all folders", code="dataset-ambiguous")
    return found


def how_to_convert(dataset: Dataset, *, thesis: bool) -> str:
    """Name the command that makes a missing dataset.

    Args:
        dataset: a dataset; its name without the number, in any case, may be that of a converter's dataset.
        thesis: use the thesis's split and preparation if the converter has them.
    """
    from nnunet_fm.dataset_conversion.demo import NAME

    number = dataset.number or "ID"
    if dataset.short == NAME:
        return f"nnunet-fm demo --unpack {dataset.number or 904}"
    for words, name in _converted():
        if name.lower() == dataset.short.lower():
            from nnunet_fm.dataset_conversion import get_converter

            converter = get_converter(words[0])
            extra = ["--split thesis"] * (thesis and "thesis" in converter.splits)
            extra += ["--thesis"] * (thesis and converter.thesis is not None)
            return " ".join(["nnunet-fm convert", words[0], "SOURCE", f"-d {number}", *words[1:], *extra])
    return f"put it into nnUNet_raw as Dataset{number if number == 'ID' else f'{number:03d}'}_{dataset.short}"


def _converted() -> Iterator[tuple[Sequence[str], str]]:
    """Words of the conversion command and name of its dataset, for all converters and domains."""
    from nnunet_fm.dataset_conversion import CONVERTERS, get_converter
    from nnunet_fm.dataset_conversion.base import ConversionOptions

    for key in CONVERTERS:
        converter = get_converter(key)
        for domain in converter.domain.values if converter.domain else (None,):
            words = [key, f"--domain {domain}"] if domain else [key]
            yield words, converter.dataset_name(ConversionOptions(domain=domain))
