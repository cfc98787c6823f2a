"""Trees of a download: folders, archives, pairing of files."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from nnunet_fm.dataset_conversion.tree import open_tree
from tests.helpers.convert_tester import fill, new_folder, opened, snapshot
from tests.helpers.errors import fails


def test_files_are_found_under_any_parent_and_leftovers_ignored(tmp_path: Path) -> None:
    source = fill(
        tmp_path / "s", "A/A/images/c1.mha", "images/._c2.mha", "__MACOSX/images/c3.mha", ".DS_Store", "x.txt"
    )
    tree = opened(source, tmp_path)
    assert list(tree.entries) == ["A/A/images/c1.mha", "x.txt"]
    ((name, groups),) = tree.match(r"images/(?P<case>c\d)\.mha")
    assert (name, groups["case"]) == ("A/A/images/c1.mha", "c1")
    assert tree.match(r"mages/c\d\.mha") == []


@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz", "tgz"])
def test_archives_are_looked_into_also_inside_folders_and_archives(ending: str, tmp_path: Path) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as file:
        file.writestr("deep/b.txt", "deep")
    source = tmp_path / "source"
    source.mkdir()
    archive = source / f"data.{ending}"
    if ending == "zip":
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("top/a.txt", "a")
            file.writestr("top/inner.zip", inner.getvalue())
    else:
        with tarfile.open(archive, "w:gz" if "g" in ending else "w") as tar:
            for name, content in (("./top/a.txt", b"a"), ("top/inner.zip", inner.getvalue())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    before = snapshot(source)
    tree = opened(source, tmp_path)
    names = [f"data.{ending}/top/a.txt", f"data.{ending}/top/inner.zip/deep/b.txt"]
    assert list(tree.entries) == names and tree.problems == ()
    assert [tree.local(name, tmp_path / name).read_text() for name in names] == ["a", "deep"]
    assert snapshot(source) == before
    (tmp_path / "again").mkdir()
    assert list(open_tree(archive, tmp_path / "again").entries) == ["top/a.txt", "top/inner.zip/deep/b.txt"]


def test_members_and_links_that_lead_out_are_refused(tmp_path: Path) -> None:
    source = fill(tmp_path / "source", "good.txt")
    (tmp_path / "secret").write_text("secret")
    (source / "out").symlink_to(tmp_path / "secret")
    (source / "folder").symlink_to(tmp_path)
    (source / "inside").symlink_to(source / "good.txt")
    (source / "nothing").symlink_to(source / "not_there")
    (source / "circle").symlink_to(source / "circle")
    with zipfile.ZipFile(source / "a.zip", "w") as file:
        for name in ("/etc/one", "../two", "c:/three", "x\\..\\..\\four"):
            file.writestr(name, "evil")
        link = zipfile.ZipInfo("five")
        link.external_attr = 0o120777 << 16
        file.writestr(link, "/etc/passwd")
        file.writestr("fine", "fine")
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("fine", "twice")
    with tarfile.open(source / "b.tar", "w") as tar:
        for name, kind in (("six", tarfile.SYMTYPE), ("seven", tarfile.LNKTYPE), ("eight", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        tar.addfile(tarfile.TarInfo("../nine"), io.BytesIO())
    tree = opened(source, tmp_path)
    assert list(tree.entries) == ["a.zip/fine", "good.txt", "inside"]
    rules = {problem.file: problem.rule for problem in tree.problems}
    members = ("/etc/one", "../two", "c:/three", "five", "fine")
    assert set(rules) == {f"a.zip/{name}" for name in members} | {
        "out", "folder", "nothing", "circle", "b.tar/six", "b.tar/seven", "b.tar/eight", "b.tar/../nine",
        next(name for name in rules if name.endswith("four")),
    }  # fmt: skip
    assert (
        "leads out" in rules["a.zip/../two"] and "link" in rules["a.zip/five"] and "two members" in rules["a.zip/fine"]
    )
    assert "not there" in rules["nothing"]
    assert not any("secret" in path.read_text() for path in (tmp_path / "scratch").rglob("*") if path.is_file())


@pytest.mark.parametrize("ending", ["zip", "tar.gz"])
def test_archives_that_are_cut_off_are_refused(ending: str, tmp_path: Path) -> None:
    source = tmp_path / f"data.{ending}"
    content = np.random.default_rng(0).bytes(50_000)
    if ending == "zip":
        with zipfile.ZipFile(source, "w") as file:
            file.writestr("a", content)
    else:
        with tarfile.open(source, "w:gz") as tar:
            info = tarfile.TarInfo("a")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    whole = source.read_bytes()
    for share in (0.3, 0.6, 0.99):
        source.write_bytes(whole[: int(share * len(whole))])
        with fails("archive-damaged", ending):
            open_tree(source, new_folder(tmp_path, f"scratch_{share}"))


@pytest.mark.parametrize(("start", "kind"), [(b"Rar!\x1a\x07\x01\x00", "RAR"), (b"7z\xbc\xaf\x27\x1c", "7z")])
def test_archives_that_cannot_be_opened_are_to_be_unpacked(tmp_path: Path, start: bytes, kind: str) -> None:
    (tmp_path / "data").write_bytes(start + bytes(100))
    with fails("source-packed", kind):
        open_tree(tmp_path / "data", new_folder(tmp_path, "scratch"))


def test_a_damaged_member_is_refused_when_it_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("b.txt", "content of a member")
    content = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(content.replace(b"content of", b"cOntent of"))
    tree = opened(tmp_path / "a.zip", tmp_path)
    with fails("archive-damaged", "b.txt"):
        tree.local("b.txt", tmp_path / "out")


def test_pairing_prefers_files_on_disk_and_names_what_is_wrong(tmp_path: Path) -> None:
    source = fill(tmp_path / "source", "i/1.mha", "l/1.mha", "i/2.mha", "l/3.mha", "i/4.mha", "b/i/4.mha", "l/4.mha")
    with zipfile.ZipFile(source / "same.zip", "w") as file:
        file.writestr("i/1.mha", "zipped")
        file.writestr("l/1.mha", "zipped")
    tree = opened(source, tmp_path)
    patterns = {"image": r"i/(?P<case>\d)\.mha", "label": r"l/(?P<case>\d)\.mha"}
    cases, problems = tree.collect(patterns)
    assert cases == {"1": {"image": "i/1.mha", "label": "l/1.mha"}}
    assert [str(problem) for problem in problems] == [
        "i/2.mha: there is no label for this case",
        "l/3.mha: there is no image for this case",
        "b/i/4.mha: a second image of this case is i/4.mha",
    ]
    assert "2" in tree.collect(patterns, optional={"label"})[0]


def test_stacks_have_no_gaps(tmp_path: Path) -> None:
    names = [f"{role}/{case}_{i:04d}.png" for role in ("i", "l") for case in "ab" for i in (2, 10, 1, 9, *range(3, 9))]
    source = fill(tmp_path / "source", *names, "i/c_0001.png", "more/i/d_1.png", "i/d_0001.png", "l/d_1.png")
    (source / "l/b_0005.png").unlink()
    patterns = {"image": r"i/(?P<case>.)_(?P<slice>\d+)\.png", "label": r"l/(?P<case>.)_(?P<slice>\d+)\.png"}
    cases, problems = opened(source, tmp_path).collect_stacks(patterns)
    assert {case: set(map(len, files.values())) for case, files in cases.items()} == {"a": {10}}
    assert cases["a"]["image"][:2] == ("i/a_0001.png", "i/a_0002.png") and cases["a"]["label"][-1] == "l/a_0010.png"
    assert {problem.case: problem.rule for problem in problems} == {
        "b": "there is no label of slice 5 of this case",
        "c": "there is no label for this case",
        "d": "a second image of this slice is i/d_0001.png",
    }
