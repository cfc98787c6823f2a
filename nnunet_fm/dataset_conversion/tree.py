"""The files of a download, unpacked or not: a folder, or a zip or tar, whose archives are looked into as well.

Nothing is ever written to a source. Zip members are read one by one; a tar is unpacked into the scratch folder, because
it can only be read from its beginning. Links and member names that lead out of the tree are refused, and archives that
would unpack to something out of all proportion, alone or one inside the other.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import struct
import tarfile
import zipfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from errno import EINVAL
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO
from zlib import error as ZlibError

from nnunet_fm.dataset_conversion.problems import ConversionError, Invalid, Problem
from nnunet_fm.io.untrusted import ForeignFileError, check_unpacking, other_kind

ZIPS = (".zip",)
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
NOT_OPENED = (".rar", ".7z")
MAX_DEPTH = 4
"""Archives inside one another; a file that unpacks to itself has no end."""

MAX_MEMBERS = 2_000_000
"""Members of all archives of a source."""

NAME = 100
"""Characters of a member's name that are kept on the disk, from its end; file systems take 255 bytes."""

IGNORED = re.compile(r"(^|/)(\._[^/]*|__MACOSX(/.*)?|\.DS_Store|Thumbs\.db)$", re.IGNORECASE)
"""What file managers leave behind."""


UNREADABLE = (
    zipfile.BadZipFile, tarfile.TarError, ZlibError, LZMAError, EOFError, RuntimeError, NotImplementedError, ValueError,
    struct.error,
)  # fmt: skip
"""What zipfile and tarfile raise on archives that are damaged, locked, or no archives."""


@dataclass(frozen=True)
class Entry:
    """Place of a file: on disk, or in a zip on disk."""

    path: Path
    member: str | None = None


@dataclass(frozen=True)
class Tree:
    """Path inside the source (with forward slashes) -> where the file is; picklable.

    A member of an archive inside a folder has the archive's path in front: ``100307_3T.zip/100307/T1w/T2w.nii.gz``.
    """

    source: Path
    scratch: Path
    entries: Mapping[str, Entry]
    problems: tuple[Problem, ...] = ()

    def match(self, pattern: str) -> list[tuple[str, re.Match[str]]]:
        """Files whose path, or its end after a slash, fits a regular expression; sorted by path.

        The groups of the match are those of ``pattern``. Whatever lies above (doubled roots, other parents) is
        ignored: ``images/(?P<case>subject\\d+)_CTA\\.mha``.
        """
        expression = re.compile(rf"(?:.*/)?(?:{pattern})")
        return [(name, found) for name in self.entries if (found := expression.fullmatch(name))]

    def collect(
        self, patterns: Mapping[str, str], optional: Collection[str] = ()
    ) -> tuple[dict[str, dict[str, str]], list[Problem]]:
        """Pair files: ``({case: {role: file}}, problems)``, cases sorted by name.

        Args:
            patterns: role -> regular expression as for `match`, whose group ``case`` names the case.
            optional: roles that a case may lack.

        A file on disk is preferred to the same role's file in an archive beside it. A case with two files for one
        role, or without a file that it needs, is left out and a problem.
        """
        found: dict[str, dict[str, list[str]]] = {}
        for role, pattern in patterns.items():
            for name, groups in self.match(pattern):
                found.setdefault(groups["case"], {}).setdefault(role, []).append(name)
        cases, problems = {}, []
        for case, roles in sorted(found.items()):
            files: dict[str, str] = {}
            faults = []
            for role in patterns:
                candidates = roles.get(role, [])
                unpacked = [name for name in candidates if self.entries[name].member is None]
                candidates = unpacked or candidates
                if len(candidates) > 1:
                    faults.append(
                        Problem(candidates[0], f"a second {role} of this case is {candidates[1]}", case, "file-twice")
                    )
                elif candidates:
                    files[role] = candidates[0]
                elif role not in optional:
                    present = next(iter(roles.values()))[0]
                    faults.append(Problem(present, f"there is no {role} for this case", case, "file-missing"))
            if faults:
                problems += faults
            else:
                cases[case] = files
        return cases, problems

    def collect_stacks(
        self, patterns: Mapping[str, str]
    ) -> tuple[dict[str, dict[str, tuple[str, ...]]], list[Problem]]:
        """Collect like `collect`, for roles of one file per slice: ``({case: {role: files in order}}, problems)``.

        Args:
            patterns: role -> regular expression with the groups ``case`` and ``slice``, a number.

        All roles of a case must have the same slices, without a gap and none twice.
        """
        found: dict[str, dict[str, dict[int, str]]] = {}
        problems = []
        for role, pattern in patterns.items():
            for name, groups in self.match(pattern):
                slices = found.setdefault(groups["case"], {}).setdefault(role, {})
                number = int(groups["slice"])
                if number in slices:
                    problems.append(
                        Problem(
                            name, f"a second {role} of this slice is {slices[number]}", groups["case"], "file-twice"
                        )
                    )
                slices[number] = name
        for case, roles in found.items():
            first = next(iter(next(iter(roles.values())).values()))
            numbers = {number for slices in roles.values() for number in slices}
            for role in patterns:
                absent = sorted(set(range(min(numbers), max(numbers) + 1)) - set(roles.get(role, {})))
                if role not in roles:
                    problems.append(Problem(first, f"there is no {role} for this case", case, "file-missing"))
                elif absent:
                    some = ", ".join(map(str, absent[:5]))
                    problems.append(
                        Problem(first, f"there is no {role} of slice {some} of this case", case, "file-missing")
                    )
        faulty = {problem.case for problem in problems}
        cases = {
            case: {role: tuple(file for _, file in sorted(roles[role].items())) for role in patterns}
            for case, roles in sorted(found.items())
            if case not in faulty
        }
        return cases, sorted(problems, key=lambda problem: problem.file)

    def local(self, name: str, folder: Path | None = None) -> Path:
        """The file on disk; a zip's member is written to ``folder`` first, under its own last name.

        Args:
            name: path in the tree.
            folder: for a member; without it, one that lives as long as the tree.

        Raises:
            Invalid: if the member is damaged.
        """
        entry = self.entries[name]
        if folder is None:
            folder = self.scratch / "listed" / str(list(self.entries).index(name))
        if entry.member is None:
            return entry.path
        target = folder / PurePosixPath(name).name[-NAME:]
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with zipfile.ZipFile(entry.path) as archive, archive.open(entry.member) as member, target.open("wb") as out:
                shutil.copyfileobj(member, out, 1 << 20)
        except (*UNREADABLE, OSError) as error:
            if isinstance(error, OSError) and error.errno != EINVAL:  # a member that would begin before the archive
                raise
            raise Invalid(
                name, f"cannot be unpacked: the archive is damaged, cut off or locked ({error})", code="archive-damaged"
            ) from None
        return target


@dataclass
class _Opening:
    """A tree while its archives are being looked into."""

    scratch: Path
    entries: dict[str, Entry] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    depth: int = 0
    members: int = 0
    packed: int = 0
    """Bytes of the outermost archives so far."""
    unpacked: int = 0
    """Bytes of all their members, as far as they say."""

    def add(self, name: str, entry: Entry) -> None:
        if IGNORED.search(name):
            return
        kind = name.lower()
        if kind.endswith((*ZIPS, *TARS)):
            path = entry.path
            if self.depth >= MAX_DEPTH:
                self.problems.append(
                    Problem(
                        name, f"more than {MAX_DEPTH} archives inside one another are refused", code="archive-depth"
                    )
                )
                return
            if entry.member is not None:  # an archive in an archive
                path = Tree(entry.path, self.scratch, {name: entry}).local(name, self._fresh_folder())
            self.archive(path, f"{name}/", name)
        elif name in self.entries:
            self.problems.append(Problem(name, "the archive has two members of this name", code="archive-twice"))
        else:
            self.entries[name] = entry

    def folder(self, root: Path) -> None:
        def unreadable(error: OSError) -> None:
            self.problems.append(
                Problem(str(error.filename), f"cannot be listed: {error.strerror}", code="folder-unreadable")
            )

        for parent, folders, files in os.walk(root, onerror=unreadable):
            for name in sorted((*folders, *files)):
                path = Path(parent, name)
                relative = path.relative_to(root).as_posix()
                if path.is_symlink() and not _inside(path, root):
                    self.problems.append(
                        Problem(
                            relative, "a link that leads out of the source's folder is refused", code="link-refused"
                        )
                    )
                elif path.is_symlink() and not path.exists():
                    self.problems.append(Problem(relative, "a link to a file that is not there", code="link-broken"))
                elif name in files and path.is_file():
                    self.add(relative, Entry(path))

    def archive(self, path: Path, prefix: str, shown: str) -> None:
        """Members of a zip are listed, those of a tar unpacked.

        Raises:
            ConversionError: if the archive cannot be listed to its end, or is out of proportion.
        """
        if self.depth == 0:
            self.packed += path.stat().st_size
        self.depth += 1
        try:
            members = self._zip(path) if path.name.lower().endswith(ZIPS) else self._tar(path)
            for member, entry in members:
                name = prefix + member
                if entry is None:
                    self.problems.append(
                        Problem(name, "a link or special file in an archive is refused", code="link-refused")
                    )
                elif _leaves(member):
                    self.problems.append(
                        Problem(name, "a member whose name leads out of the archive is refused", code="archive-escape")
                    )
                else:
                    self.add(name, entry)
        except (ForeignFileError, Invalid) as error:
            raise ConversionError(str(error), code=error.code) from None
        except UNREADABLE as error:
            raise ConversionError(
                f"{shown}: the archive is damaged or cut off ({error})", code="archive-damaged"
            ) from None
        finally:
            self.depth -= 1

    def _count(self, path: Path, size: int) -> None:
        """Another member of so many bytes; a ForeignFileError where the source is out of all proportion."""
        self.members, self.unpacked = self.members + 1, self.unpacked + size
        if self.members > MAX_MEMBERS:
            raise ForeignFileError(f"{path.name}: more than {MAX_MEMBERS:,} files in archives", code="archive-size")
        check_unpacking(path.name, self.packed, self.unpacked, self.scratch)

    def _zip(self, path: Path) -> Iterator[tuple[str, Entry | None]]:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if not info.filename:
                    raise zipfile.BadZipFile("a member has no name")
                mode = stat.S_IFMT(info.external_attr >> 16)
                if not info.is_dir():
                    self._count(path, info.file_size)
                    yield info.filename, Entry(path, info.filename) if mode in (0, stat.S_IFREG) else None

    def _tar(self, path: Path) -> Iterator[tuple[str, Entry | None]]:
        folder = self._fresh_folder()
        with tarfile.open(path) as archive:
            for number, info in enumerate(archive):
                self._count(path, info.size if info.isreg() else 0)
                if info.isdir():
                    continue
                stream = archive.extractfile(info) if info.isreg() else None
                if stream is None or IGNORED.search(info.name) or _leaves(info.name):
                    yield info.name, None if stream is None else Entry(path)
                    continue
                target = folder / str(number) / PurePosixPath(info.name).name[-NAME:]
                target.parent.mkdir(parents=True)
                with stream, target.open("wb") as out:
                    _copy(stream, out, info.size)
                yield info.name.removeprefix("./"), Entry(target)

    def _fresh_folder(self) -> Path:
        folder = self.scratch / f"archive_{len(list(self.scratch.iterdir()))}"
        folder.mkdir()
        return folder


def open_tree(source: Path, scratch: Path) -> Tree:
    """List a source.

    Args:
        source: a folder, or a zip or tar.
        scratch: an empty folder that lives as long as the tree is used; tars are unpacked there.

    Raises:
        ConversionError: if there is no such source, or an archive is damaged.
    """
    opening = _Opening(scratch)
    root = source.resolve()
    if root.is_dir():
        opening.folder(root)
    elif root.is_file() and root.name.lower().endswith((*ZIPS, *TARS)):
        opening.archive(root, "", str(source))
    elif root.is_file() and (kind := other_kind(root)) is not None and not root.name.lower().endswith(".gz"):
        raise ConversionError(
            f"{source} {kind}" + (", then give the folder" if "unpack" in kind else ""), code="source-packed"
        )
    elif root.is_file():
        opening.add(root.name, Entry(root))
    else:
        raise ConversionError(f"{source}: there is no such file or folder", code="source-missing")
    problems = tuple(sorted(opening.problems, key=lambda problem: problem.file))
    return Tree(source, scratch, dict(sorted(opening.entries.items())), problems)


def _inside(link: Path, root: Path) -> bool:
    try:
        return link.resolve().is_relative_to(root)
    except (OSError, RuntimeError):  # links in a circle
        return False


def _leaves(member: str) -> bool:
    """True if a member's name is absolute or climbs, in the way of any system."""
    name = member.replace("\\", "/")
    return name.startswith("/") or ".." in name.split("/") or re.match(r"[A-Za-z]:", name) is not None


def _copy(stream: IO[bytes], out: IO[bytes], size: int) -> None:
    shutil.copyfileobj(stream, out, 1 << 20)
    if out.tell() != size:
        raise EOFError(f"a member ends after {out.tell()} of {size} bytes")
