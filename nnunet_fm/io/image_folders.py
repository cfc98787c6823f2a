"""Image files of a folder in nnU-Net's layout: the cases they make, and why the other files are not taken."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from nnunet_fm.errors import InvalidValueError
from nnunet_fm.io.messages import listed

_IMAGE = re.compile(r"\.(nii|nrrd|nhdr|mha|mhd|gipl|hdr|img|dcm|ima|mgz|mgh|mnc|png|bmp|tiff?|jpe?g)\b")
_COMPANIONS = (".json", ".txt", ".csv", ".tsv", ".xml", ".md5", ".sha256", ".bval", ".bvec", ".log", ".pkl", ".npz")
"""Endings of files that describe images: ``scan.nii.gz.md5`` is none itself."""
SEARCHED = 1000
"""Entries of a sub-folder that are looked at for an image."""


@dataclass(frozen=True)
class ImageFiles:
    """Content of a folder.

    Attributes:
        cases: name -> channel files, both sorted.
        left_out: name of a file or sub-folder -> why it is no case's; hidden files and files of other kinds are in
            neither.
    """

    cases: dict[str, list[Path]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def find_images(folder: Path, file_ending: str, *, numbered: bool = True) -> ImageFiles:
    """List the images ``<case>_<four digits><ending>`` of a folder; files whose names start with a dot do not count.

    Args:
        folder: of the images.
        file_ending: of ``dataset.json``.
        numbered: False also takes ``<case><ending>``, which holds all channels of a case.

    Raises:
        ValueError: for ``<case><ending>`` beside ``<case>_0000<ending>``; the message names both.
    """
    found = ImageFiles()
    plain: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        case, number = _parts(path.name, file_ending)
        if reason := _fault(path, case, number, file_ending, numbered):
            found.left_out[shown(path.name)] = reason
        elif case is not None and number is not None:
            found.cases.setdefault(case, []).append(path)
        elif case is not None and not numbered and not path.is_dir():
            plain[case] = path
    for case, path in plain.items():
        if case in found.cases:
            raise InvalidValueError(
                f"{path} and {found.cases[case][0].name} are both images of {case}: remove one of them",
                code="image-twice",
            )
        found.cases[case] = [path]
    return ImageFiles(dict(sorted(found.cases.items())), found.left_out)


def find_label_maps(folder: Path, file_ending: str) -> ImageFiles:
    """List the label maps ``<case><ending>`` of a folder; an absent folder has none."""
    found = ImageFiles()
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith("."):
            continue
        case = path.name.removesuffix(file_ending) if path.name.endswith(file_ending) else None
        if reason := _fault(path, case, None, file_ending, numbered=False):
            found.left_out[shown(path.name)] = reason
        elif case:
            found.cases[case] = [path]
    return found


def case_name(file_name: str, file_ending: str) -> str:
    """Name of the case that an image file belongs to, without the number of its channel and the ending."""
    return re.sub(r"_\d{4}$", "", file_name.removesuffix(file_ending))


def shown(name: str) -> str:
    """A file's name in one line: a line break and the like are written as Python writes them."""
    return name if _printable(name) else ascii(name)


def left_out_words(left_out: Mapping[str, str], most: int = 10) -> str:
    """The files that are not taken and why, in one line."""
    return listed([f"{name} ({reason})" for name, reason in left_out.items()], "; ", most)


def _parts(name: str, ending: str) -> tuple[str | None, str | None]:
    """Case and channel number of a file's name; None for a part that it lacks."""
    if not name.endswith(ending) or name == ending:
        return None, None
    stem = name.removesuffix(ending)
    numbered = re.fullmatch(r"(.+)_(\d{4})", stem, re.DOTALL)
    return (numbered[1], numbered[2]) if numbered else (stem, None)


def _fault(path: Path, case: str | None, number: str | None, ending: str, numbered: bool) -> str | None:
    """Reason why a file or folder with images is left out; None where it is used, or has no images."""
    name = path.name
    if path.is_dir():
        inner = next(_images_in(path, ending), None)
        return None if inner is None else f"a folder: move its images, such as {shown(inner.name)}, out of it"
    looks = case is not None or name.casefold().endswith(ending.casefold()) or _looks_like_an_image(name)
    if not looks:
        return None
    if path.is_symlink() and not path.exists():
        return "a link to a file that is not there"
    if not _printable(name):
        return "a line break or another control character in its name: rename it"
    if case is None:
        if name.casefold().endswith(ending.casefold()) and name != ending:
            return f"ends in {name[-len(ending) :]}, not in {ending}: rename it"
        return f"does not end in {ending}: convert it to that format"
    if number is None and numbered:
        return f"lacks the number of its channel: rename it to {case}_0000{ending}"
    return None


def _images_in(folder: Path, ending: str) -> Iterator[Path]:
    for path in islice(folder.rglob("*"), SEARCHED):
        name = path.name
        if not name.startswith(".") and (name.casefold().endswith(ending.casefold()) or _looks_like_an_image(name)):
            yield path


def _looks_like_an_image(name: str) -> bool:
    lower = name.casefold()
    return _IMAGE.search(lower) is not None and not lower.endswith(_COMPANIONS)


def _printable(name: str) -> bool:
    """Whether a name has no control characters and no bytes that are not UTF-8."""
    return not any(unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") for sign in name)
