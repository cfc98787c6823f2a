"""``nnunet-fm weights``: downloads that stop and go on, files added by hand, hashes that are kept, full copies."""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from nnunet_fm.models.build import build_network
from nnunet_fm.models.card import Checkpoint
from nnunet_fm.weights import cache, download
from nnunet_fm.weights.cache import PIN_FILE, pinned
from nnunet_fm.weights.load import FileRules, load_checkpoint
from nnunet_fm.weights.slim import bases_of, slim_state_dict
from tests.helpers.commands import Command, make_command
from tests.helpers.errors import assert_refused
from tests.helpers.weights_server import Server, digest, entry, running_server, save, serve, small_models


@pytest.fixture
def server() -> Iterator[Server]:
    with running_server() as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The weights folder, which does not exist yet."""
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "weights"))
    return tmp_path / "weights"


@pytest.fixture
def models(folder: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> dict[str, Checkpoint]:
    return small_models(server, monkeypatch)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return make_command(monkeypatch, capsys, "weights")


def test_pull_puts_the_file_in_place(
    command: Command, models: dict[str, Checkpoint], server: Server, folder: Path, tmp_path: Path
) -> None:
    content = serve(server, save(tmp_path / "a"))
    code, out, err = command("pull", "tiny")
    assert code == 0, err
    assert (folder / "tiny.model").read_bytes() == content
    assert pinned(folder / "tiny.model") == hashlib.sha256(content).hexdigest()
    assert not list(folder.glob("*.part*")) and str(folder / "tiny.model") in out
    assert command("pull", "tiny_ct")[1] == f"tiny_ct: at hand, {folder / 'tiny.model'}\n"
    assert server.requests == [("tiny.model", None)]


def test_pull_goes_on_where_it_stopped(
    command: Command, models: dict[str, Checkpoint], server: Server, folder: Path, tmp_path: Path
) -> None:
    content = serve(server, save(tmp_path / "a"))
    server.cut["tiny.model"] = 5000
    code, _, err = command("pull", "tiny")
    assert code == 1
    assert_refused(err, "download-interrupted")
    assert not (folder / "tiny.model").exists() and (folder / "tiny.model.part").stat().st_size == 5000
    code, _, err = command("pull", "tiny")
    assert code == 0, err
    assert server.requests[-1] == ("tiny.model", "bytes=5000-")
    assert (folder / "tiny.model").read_bytes() == content


@pytest.mark.parametrize("changed", ["file", "no tags"])
def test_pull_starts_anew_when_it_cannot_be_sure(
    command: Command, models: dict[str, Checkpoint], server: Server, folder: Path, tmp_path: Path, changed: str
) -> None:
    """Halves of two files make no file."""
    serve(server, save(tmp_path / "a"))
    server.cut["tiny.model"] = 5000
    server.tags = changed == "file"
    assert command("pull", "tiny")[0] == 1
    content = serve(server, save(tmp_path / "b", seed=1))
    code, _, err = command("pull", "tiny")
    assert code == 0, err
    assert (folder / "tiny.model").read_bytes() == content


def test_a_finished_download_that_was_not_renamed(
    command: Command, models: dict[str, Checkpoint], server: Server, folder: Path, tmp_path: Path
) -> None:
    content = serve(server, save(tmp_path / "a"))
    folder.mkdir()
    (folder / "tiny.model.part").write_bytes(content)
    (folder / "tiny.model.part.version").write_text(f'"{hashlib.md5(content).hexdigest()}"')
    code, _, err = command("pull", "tiny")
    assert code == 0, err
    assert (folder / "tiny.model").read_bytes() == content


@pytest.mark.parametrize("what", ["hash", "size"])
def test_another_file_than_published(
    command: Command, models: dict[str, Checkpoint], server: Server, folder: Path, tmp_path: Path, what: str
) -> None:
    content = serve(server, save(tmp_path / "a"))
    found = hashlib.sha256(content).hexdigest()
    if what == "hash":
        models["tiny_ct"].sha256 = "0" * 64
    else:
        models["tiny_ct"].bytes = len(content) + 1
    code, _, err = command("pull", "tiny")
    expected = ("0" * 64, found) if what == "hash" else (f"{len(content):,}", f"{len(content) + 1:,}")
    assert code == 1
    assert_refused(err, "weights-changed" if what == "hash" else "download-size", *expected)
    assert not list(folder.glob("tiny.model*")) and not pinned(folder / "tiny.model")


def test_the_right_hash_and_size(
    command: Command, models: dict[str, Checkpoint], server: Server, folder: Path, tmp_path: Path
) -> None:
    content = serve(server, save(tmp_path / "a"))
    models["tiny_ct"].sha256 = hashlib.sha256(content).hexdigest()
    models["tiny_ct"].bytes = len(content)
    assert command("pull", "tiny")[0] == 0
    row = json.loads(command("list", "--json")[1])[0]
    assert (row["at hand"], row["hash"], row["bytes"]) == ("yes", "as published", len(content))


@pytest.mark.parametrize("kind", ["no checkpoint", "other model", "cut"])
def test_a_file_that_does_not_load_is_removed(
    command: Command, models: dict[str, Checkpoint], server: Server, folder: Path, tmp_path: Path, kind: str
) -> None:
    """Without a published hash, names and shapes are the check."""
    content = serve(server, save(tmp_path / "a", "tiny_wide"))
    if kind != "other model":
        server.files["tiny.model"] = b"\x00" * 9000 if kind == "no checkpoint" else content[:-4000]
    code, _, err = command("pull", "tiny")
    assert code == 1
    codes = {"no checkpoint": "weights-damaged", "other model": "weights-mismatch", "cut": "weights-cut-off"}
    assert_refused(err, codes[kind], "tiny.model")
    assert not list(folder.glob("tiny.model*"))


def test_a_web_page_instead_of_a_file(
    command: Command, models: dict[str, Checkpoint], server: Server, folder: Path
) -> None:
    server.files["login"] = b"<html>Sign in</html>"
    server.html.add("login")
    server.redirects["tiny.model"] = server.url("login")
    code, _, err = command("pull", "tiny")
    assert code == 1
    assert_refused(err, "download-web-page", "https://example.org/weights")
    assert not list(folder.glob("tiny.model*"))


def test_not_found_and_not_there(
    command: Command, models: dict[str, Checkpoint], server: Server, tmp_path: Path
) -> None:
    code, _, err = command("pull", "tiny")
    assert code == 1
    assert_refused(err, "server-refused", "404")
    models["tiny_ct"].urls = ["http://127.0.0.1:9/tiny.model"]
    code, _, err = command("pull", "tiny")
    assert code == 1
    assert_refused(err, "server-unreachable", "https://example.org/weights")


@pytest.mark.parametrize("address", ["http://example.org/a", "ftp://example.org/a", "file:///etc/passwd", "hf://a/b"])
def test_only_https(command: Command, models: dict[str, Checkpoint], server: Server, address: str) -> None:
    models["tiny_ct"].urls = [address]
    code, _, err = command("pull", "tiny")
    assert code == 1
    assert_refused(err, "url-form" if address.startswith("hf") else "url-refused", address)
    if not address.startswith("hf"):
        models["tiny_ct"].urls = [server.url("tiny.model")]
        server.redirects["tiny.model"] = address
        code, _, err = command("pull", "tiny")
        assert code == 1
        assert_refused(err, "server-refused" if address.startswith("file") else "url-refused", "tiny.model")


def test_hub_files_come_from_the_hubs_endpoint(
    command: Command,
    models: dict[str, Checkpoint],
    server: Server,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert download.resolve("hf://o/r/a b/c.pth") == "https://huggingface.co/o/r/resolve/main/a%20b/c.pth"
    monkeypatch.setenv("HF_ENDPOINT", server.url(""))
    content = serve(server, save(tmp_path / "a"), "store/1")
    server.redirects["owner/repository/resolve/main/deep/tiny.pth"] = "/store/1"
    models["tiny_ct"].urls = ["hf://owner/repository/deep/tiny.pth"]
    server.cut["store/1"] = 4000
    assert command("pull", "tiny")[0] == 1
    assert command("pull", "tiny")[0] == 0
    assert server.requests[-1] == ("store/1", "bytes=4000-")
    assert (folder / "tiny.model").read_bytes() == content


def test_the_hubs_hash_is_compared(
    command: Command, models: dict[str, Checkpoint], server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url(""))
    content = serve(server, save(tmp_path / "a"), "store/1")
    server.redirects["owner/repository/resolve/main/tiny.pth"] = "/store/1"
    models["tiny_ct"].urls = ["hf://owner/repository/tiny.pth"]
    server.linked["owner/repository/resolve/main/tiny.pth"] = "0" * 64
    code, _, err = command("pull", "tiny")
    assert code == 1
    assert_refused(err, "weights-changed", "0" * 64, "hub")
    server.linked["owner/repository/resolve/main/tiny.pth"] = hashlib.sha256(content).hexdigest()
    assert command("pull", "tiny")[0] == 0


def test_addresses_are_tried_in_order(
    command: Command, models: dict[str, Checkpoint], server: Server, folder: Path, tmp_path: Path
) -> None:
    models["tiny_ct"].urls = [server.url("gone.model"), server.url("tiny.model")]
    code, _, err = command("pull", "tiny")
    assert code == 1
    assert_refused(err, "server-refused", "gone.model", "tiny.model", "404")
    content = serve(server, save(tmp_path / "a"))
    assert command("pull", "tiny")[0] == 0
    assert (folder / "tiny.model").read_bytes() == content


def test_a_file_of_a_zip_goes_on_where_the_line_broke(
    command: Command, models: dict[str, Checkpoint], server: Server, folder: Path, tmp_path: Path
) -> None:
    file = save(tmp_path / "small.model")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(file, "weights/small.model")
    serve(server, tmp_path / "all.zip", "all.zip")
    models["tiny_ct"].urls = [server.url("all.zip")]
    models["tiny_ct"].md5 = hashlib.md5(file.read_bytes()).hexdigest()[:6]
    server.cut["all.zip"] = 5000
    assert command("pull", "tiny")[0] == 1
    assert command("pull", "tiny")[0] == 0
    assert server.requests[-1] == ("all.zip", "bytes=5000-")
    assert (folder / "tiny.model").read_bytes() == file.read_bytes()
    assert not [path.name for path in folder.iterdir() if ".zip" in path.name or "unpacked" in path.name]
    models["tiny_ct"].md5 = "abcdef"
    (folder / "tiny.model").unlink()
    code, _, err = command("pull", "tiny")
    assert code == 1
    assert_refused(err, "weights-changed", "MD5", "abcdef")
    assert not (folder / "tiny.model").exists()


def test_the_publishers_first_digits_are_enough(
    command: Command, models: dict[str, Checkpoint], folder: Path, tmp_path: Path
) -> None:
    file = save(tmp_path / "tiny.model")
    models["tiny_ct"].md5 = "abcdef"
    code, _, err = command("add", str(file))
    assert code == 0 and "MD5" in err and "not the file of its publisher" in err
    assert command("verify")[0] == 1
    models["tiny_ct"].md5 = hashlib.md5(file.read_bytes()).hexdigest()[:6]
    assert command("add", str(file))[0] == 0
    assert [row["hash"] for row in json.loads(command("verify", "--json")[1])] == ["as published"]
    assert json.loads(command("list", "--json")[1])[0]["hash"] == "as published"
    models["tiny_ct"].md5 = None
    assert json.loads(command("list", "--json")[1])[0]["hash"] == "publisher's unknown"


def test_two_pulls_at_once(command: Command, models: dict[str, Checkpoint], server: Server, folder: Path) -> None:
    folder.mkdir()
    with FileLock(folder / ".tiny.model.lock"):
        code, _, err = command("pull", "tiny")
    assert code == 1
    assert_refused(err, "download-running")


def test_no_space_left(
    command: Command,
    models: dict[str, Checkpoint],
    server: Server,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = serve(server, save(tmp_path / "a"))

    class Usage:
        free = 1000

    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: Usage)
    code, _, err = command("pull", "tiny")
    assert code == 1
    assert_refused(err, "disk-full", "1,000", f"{len(content):,}")


def test_files_on_drives(command: Command, models: dict[str, Checkpoint], folder: Path) -> None:
    code, _, err = command("pull", "wide_ct")
    assert code == 1
    command_to_type = "nnunet-fm weights add FILE --as wide_ct"
    assert_refused(err, "download-by-hand", "wide.model", "https://example.org/weights", folder, command_to_type)


def test_one_fault_does_not_stop_the_others(
    command: Command, models: dict[str, Checkpoint], server: Server, folder: Path, tmp_path: Path
) -> None:
    serve(server, save(tmp_path / "a"))
    code, out, err = command("pull", "wide_ct", "tiny", "--json")
    rows = json.loads(out)
    assert code == 1 and [r["status"] for r in rows] == ["failed", "pulled"]
    assert_refused(err, "download-by-hand", "wide_ct")


@pytest.mark.parametrize(("name", "expected"), [("tny", ("name-unknown", "tiny")), ("scratch", ("weights-none",))])
def test_names_that_have_no_weights(
    command: Command, models: dict[str, Checkpoint], name: str, expected: tuple[str, ...]
) -> None:
    code, _, err = command("pull", name)
    assert code == 1
    assert_refused(err, *expected)


def test_add_by_name(command: Command, models: dict[str, Checkpoint], folder: Path, tmp_path: Path) -> None:
    file = save(tmp_path / "downloads" / "small.model")
    code, out, err = command("add", file)
    assert code == 0, err
    assert "tiny_ct" in out and "matched" in out
    assert digest(folder / "tiny.model") == digest(file) == pinned(folder / "tiny.model")
    assert os.listdir(file.parent) == ["small.model"], "nothing is written beside the user's file"
    assert not (folder / "tiny.model").is_symlink()


def test_add_by_names_and_shapes(command: Command, models: dict[str, Checkpoint], folder: Path, tmp_path: Path) -> None:
    code, out, err = command("add", save(tmp_path / "checkpoint.bin", "tiny_wide"), "--json")
    assert code == 0, err
    row = json.loads(out)
    assert row["name"] == "wide_ct" and row["counts"]["matched"] == 120 and row["counts"]["dropped"] == 10
    code, _, err = command("add", save(tmp_path / "checkpoint.bin"))
    assert code == 1
    assert_refused(err, "weights-ambiguous", "tiny_ct, tiny_mr", "--as")
    assert command("add", tmp_path / "checkpoint.bin", "--as", "tiny_mr")[0] == 0
    assert sorted(p.name for p in folder.glob("*.model")) == ["tiny_mr.model", "wide.model"]


def test_add_refuses_what_does_not_fit(
    command: Command, models: dict[str, Checkpoint], folder: Path, tmp_path: Path
) -> None:
    wide = save(tmp_path / "tiny.model", "tiny_wide")
    code, _, err = command("add", wide)
    assert code == 1
    assert_refused(err, "weights-mismatch", "conv_blocks_context.5")
    torch.save({"state_dict": {"a": torch.ones(1)}}, tmp_path / "other.pth")
    code, _, err = command("add", tmp_path / "other.pth")
    assert code == 1
    assert_refused(err, "weights-unrecognised")
    (tmp_path / "page.pth").write_text("<html>")
    code, _, err = command("add", tmp_path / "page.pth")
    assert code == 1
    assert_refused(err, "weights-kind")
    assert command("add", tmp_path / "nowhere.pth")[0] == 1
    models["tiny_ct"].sha256 = "0" * 64
    code, _, err = command("add", save(tmp_path / "tiny.model"))
    assert code == 1
    assert_refused(err, "weights-changed", "0" * 64, digest(tmp_path / "tiny.model"))
    assert not folder.exists() or not list(folder.glob("*.model"))


def test_add_links(command: Command, models: dict[str, Checkpoint], folder: Path, tmp_path: Path) -> None:
    file = save(tmp_path / "tiny.model")
    assert command("add", file, "--link")[0] == 0
    assert (folder / "tiny.model").is_symlink() and (folder / "tiny.model").resolve() == file
    assert command("verify")[0] == 0


def test_add_twice(command: Command, models: dict[str, Checkpoint], folder: Path, tmp_path: Path) -> None:
    file = save(tmp_path / "tiny.model")
    assert command("add", file)[0] == command("add", file)[0] == 0
    assert command("add", folder / "tiny.model")[0] == 0
    before = digest(folder / "tiny.model")
    code, _, err = command("add", save(file, seed=1))
    assert code == 1
    assert_refused(err, "weights-exist", before, digest(file))
    assert digest(folder / "tiny.model") == before


@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_add_from_an_archive_or_folder(
    command: Command, models: dict[str, Checkpoint], folder: Path, tmp_path: Path, kind: str
) -> None:
    file = save(tmp_path / "WEIGHTS" / "deep" / "tiny.model")
    (tmp_path / "WEIGHTS" / "readme.txt").write_text("hello")
    source = tmp_path / "WEIGHTS"
    if kind == "zip":
        source = tmp_path / "WEIGHTS.zip"
        with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(file, "../../WEIGHTS/deep/tiny.model")
            archive.writestr("readme.txt", "hello")
    code, _, err = command("add", source)
    assert code == 0, err
    assert digest(folder / "tiny.model") == digest(file)
    assert {p.name for p in folder.iterdir()} <= {"tiny.model", cache.HASH_FILE, PIN_FILE, f"{PIN_FILE}.lock"}


def test_add_from_an_archive_without_or_with_several(
    command: Command, models: dict[str, Checkpoint], folder: Path, tmp_path: Path
) -> None:
    source = tmp_path / "a.zip"
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr("readme.txt", "hello")
    code, _, err = command("add", source)
    assert code == 1
    assert_refused(err, "weights-unrecognised", "readme.txt")
    with zipfile.ZipFile(source, "w") as archive:
        archive.write(save(tmp_path / "tiny.model"), "one/tiny.model")
        archive.write(tmp_path / "tiny.model", "two/tiny.model")
    code, _, err = command("add", source)
    assert code == 1
    assert_refused(err, "weights-several", "one/tiny.model, two/tiny.model")
    code, _, err = command("add", source, "--link")
    assert code == 1


def test_verify_notices_a_change(command: Command, models: dict[str, Checkpoint], folder: Path, tmp_path: Path) -> None:
    assert command("verify")[0] == 0
    assert command("verify", "tiny")[0] == 1
    save(folder / "tiny.model")
    save(folder / "wide.model", "tiny_wide")
    assert {r["hash"] for r in json.loads(command("list", "--json")[1])} == {"not pinned", "none published"}
    before = digest(folder / "tiny.model")
    code, out, err = command("verify", "--json")
    assert code == 0 and [r["status"] for r in json.loads(out)] == ["good", "good"], err
    assert pinned(folder / "tiny.model") == before
    save(folder / "tiny.model", seed=1)
    code, out, err = command("verify")
    assert code == 1
    assert_refused(err, "weights-changed", before, digest(folder / "tiny.model"))
    assert "wide_ct: good" in out
    rows = {r["name"]: r for r in json.loads(command("list", "--json")[1])}
    assert (rows["tiny_ct"]["hash"], rows["wide_ct"]["hash"]) == ("CHANGED", "publisher's unknown")


def test_verify_loads_on_trial(command: Command, models: dict[str, Checkpoint], folder: Path) -> None:
    save(folder / "tiny.model", "tiny_wide")
    code, _, err = command("verify")
    assert code == 1
    assert_refused(err, "weights-mismatch", "tiny_ct")


def test_list_is_a_table(command: Command, models: dict[str, Checkpoint], folder: Path) -> None:
    save(folder / "wide.model", "tiny_wide")
    lines = command("list")[1].splitlines()
    assert len(lines) == 2 + len(models) and "\x1b" not in "".join(lines)
    (row,) = [line for line in lines if line.startswith("wide_ct")]
    assert re.search(r"wide\.model +yes +\d+\.\d MB +not pinned", row) and row.endswith("CC0")


def test_help_has_examples(command: Command) -> None:
    for name in ("pull", "add", "verify", "bundle"):
        code, out, _ = command(name, "--help")
        assert code == 0 and f"nnunet-fm weights {name}" in out


@pytest.fixture
def trained(folder: Path, tmp_path: Path) -> Path:
    """A trained folder with two slim folds."""
    base = save(folder / "tiny.model", seed=1)
    model = tmp_path / "fm_trainer__FMPlans_tiny__3d_fullres"
    for fold in (0, 1):
        torch.manual_seed(fold)
        network = build_network(entry("tiny"), 1, 3, adapter="freeze")
        load_checkpoint(network, base, FileRules(drop=[r"^seg_outputs\."]))
        (model / f"fold_{fold}").mkdir(parents=True)
        content = {"network_weights": slim_state_dict(network), "trainer_name": "fm_trainer_freeze", "epoch": fold}
        torch.save(content, model / f"fold_{fold}" / "checkpoint_final.pth")
        torch.save(network.state_dict(), tmp_path / f"expected_{fold}.pth")
    torch.save({"network_weights": network.state_dict()}, model / "fold_1" / "checkpoint_best.pth")
    return model


def test_bundle_writes_full_checkpoints(command: Command, trained: Path, folder: Path, tmp_path: Path) -> None:
    slim_size = (trained / "fold_0" / "checkpoint_final.pth").stat().st_size
    best = (trained / "fold_1" / "checkpoint_best.pth").stat().st_mtime_ns
    code, out, err = command("bundle", trained, "--json")
    assert code == 0, err
    assert [(Path(r["path"]).name, r["bundled"]) for r in json.loads(out)] == [
        ("checkpoint_final.pth", True),
        ("checkpoint_best.pth", False),
        ("checkpoint_final.pth", True),
    ]
    assert (trained / "fold_1" / "checkpoint_best.pth").stat().st_mtime_ns == best
    (folder / "tiny.model").unlink()
    for fold in (0, 1):
        file = trained / f"fold_{fold}" / "checkpoint_final.pth"
        content = torch.load(file)
        expected = torch.load(tmp_path / f"expected_{fold}.pth")
        assert not bases_of(content["network_weights"]) and content["epoch"] == fold
        assert content["network_weights"].keys() == expected.keys()
        assert all(torch.equal(content["network_weights"][n], expected[n]) for n in expected)
        assert slim_size < file.stat().st_size < 1.1 * (tmp_path / f"expected_{fold}.pth").stat().st_size
        build_network(entry("tiny"), 1, 3, adapter="freeze").load_state_dict(content["network_weights"])
    assert "was full already" in command("bundle", trained / "fold_0")[1]
    assert not list(trained.rglob("*.partial"))


def test_bundle_without_the_base_changes_nothing(command: Command, trained: Path, folder: Path) -> None:
    (folder / "tiny.model").unlink()
    before = {p: digest(p) for p in trained.rglob("*.pth")}
    code, _, err = command("bundle", trained)
    assert code == 1
    assert_refused(err, "base-file-missing", "tiny.model", str(folder))
    assert {p: digest(p) for p in trained.rglob("*.pth")} == before


def test_bundle_of_a_folder_without_checkpoints(command: Command, tmp_path: Path) -> None:
    code, _, err = command("bundle", tmp_path)
    assert code == 1
    assert_refused(err, "checkpoint-missing")
