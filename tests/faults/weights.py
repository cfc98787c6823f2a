"""Faults of official files: downloads, files added by hand, and those that a slim checkpoint needs."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_fm.weights.cache import ChangedFileError, check_hash
from nnunet_fm.weights.slim import BaseFileError, slim_state_dict
from tests.faults.registry import Bench, Seen, cut_in_half, fault
from tests.helpers.slim_files import build, pretrained, same, write_base
from tests.helpers.weights_server import Server, running_server, save, serve, small_models

STAGE = "Weights"
GONE = "nothing is left in the weights folder"


class Runs:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.file}",)


def added(at: Bench, make: Callable[[Path], Path], *more: str) -> Seen:
    """A file that is added by hand, with cards of two small models in place of the real ones."""
    file = make(at.root / "downloads")
    small_models(Server(), at.patch)
    seen = at.fails("weights", "add", file, *more)
    assert not (at.root / "weights").exists() or not list((at.root / "weights").glob("*.model"))
    return seen


def pulled(at: Bench, prepare: Callable[[Any, dict[str, Any]], object]) -> Seen:
    """A download from a server of this process."""
    with running_server() as server:
        models = small_models(server, at.patch)
        serve(server, save(at.root / "served"))
        prepare(server, models)
        seen = at.fails("weights", "pull", "tiny")
    assert not (at.root / "weights" / "tiny.model").exists()
    return seen


@fault(
    STAGE,
    "The server sends another file than was published.",
    happens="refused, exit code 1",
    keeps="nothing is left in the weights folder",
    code="weights-changed",
)
def a_download_of_another_hash(at: Bench) -> Seen:
    seen = pulled(at, lambda server, models: setattr(models["tiny_ct"], "sha256", "0" * 64))
    found = hashlib.sha256((at.root / "served").read_bytes()).hexdigest()
    assert found in seen.text and "0" * 64 in seen.text
    return seen


@fault(
    STAGE,
    "The server sends a web page, such as a form to sign in.",
    happens="refused, exit code 1",
    keeps="nothing is left in the weights folder",
    code="download-web-page",
)
def a_web_page_for_a_download(at: Bench) -> Seen:
    def page(server: Any, models: Any) -> None:
        server.files["tiny.model"] = b"<html>Sign in</html>"
        server.html.add("tiny.model")

    return pulled(at, page)


@fault(
    STAGE,
    "The connection ends in the middle of a download.",
    happens="exit code 1",
    keeps="what has arrived; the same command goes on from there",
    code="download-interrupted",
)
def a_connection_that_ends(at: Bench) -> Seen:
    seen = pulled(at, lambda server, models: server.cut.update({"tiny.model": 4000}))
    assert (at.root / "weights" / "tiny.model.part").stat().st_size == 4000
    assert f"4,000 of {(at.root / 'served').stat().st_size:,} bytes" in seen.text
    return seen


@fault(
    STAGE,
    "A web page was saved as the weights file and is added.",
    happens="refused, exit code 1",
    keeps="nothing is left in the weights folder",
    code="weights-kind",
)
def a_web_page_that_is_added(at: Bench) -> Seen:
    def page(folder: Path) -> Path:
        folder.mkdir()
        (folder / "small.model").write_text("<html>Sign in</html>")
        return folder / "small.model"

    return added(at, page)


@fault(
    STAGE,
    "A weights file is cut off.",
    happens="refused, exit code 1",
    keeps="nothing is left in the weights folder",
    code="weights-cut-off",
)
def weights_cut_off(at: Bench) -> Seen:
    def cut(folder: Path) -> Path:
        file = save(folder / "small.model")
        cut_in_half(file)
        return file

    return added(at, cut)


@fault(
    STAGE,
    "A zip of weights is cut off.",
    happens="refused, exit code 1",
    keeps="nothing is left in the weights folder",
    code="weights-cut-off",
)
def a_zip_of_weights_cut_off(at: Bench) -> Seen:
    def cut(folder: Path) -> Path:
        file = save(folder / "small.model")
        with zipfile.ZipFile(folder / "weights.zip", "w") as archive:
            archive.write(file, "small.model")
        cut_in_half(folder / "weights.zip")
        return folder / "weights.zip"

    return added(at, cut)


@fault(
    STAGE,
    "A weights file would run a program when it is read.",
    happens="refused, nothing runs, exit code 1",
    keeps="nothing is left in the weights folder",
    code="weights-refused",
)
def weights_that_run_code(at: Bench) -> Seen:
    ran = at.root / "ran"

    def hostile(folder: Path) -> Path:
        folder.mkdir()
        torch.save({"state_dict": {"a": Runs(ran)}}, folder / "small.model")
        return folder / "small.model"

    seen = added(at, hostile)
    assert not ran.exists()
    return seen


@fault(
    STAGE,
    "Weights of a larger network are added under the name of a smaller one.",
    happens="refused, exit code 1",
    keeps="nothing is left in the weights folder",
    code="weights-mismatch",
)
def weights_of_another_size(at: Bench) -> Seen:
    return added(at, lambda folder: save(folder / "tiny.model", "tiny_wide"))


@fault(
    STAGE,
    "Weights of a network that no card knows.",
    happens="refused, exit code 1",
    keeps="nothing is left in the weights folder",
    code="weights-unrecognised",
)
def weights_of_an_unknown_network(at: Bench) -> Seen:
    def unknown(folder: Path) -> Path:
        folder.mkdir()
        torch.save({"state_dict": {"a": torch.ones(1)}}, folder / "other.pth")
        return folder / "other.pth"

    return added(at, unknown)


@fault(
    STAGE,
    "An official file changed between planning and training.",
    happens="refused before anything is built",
    keeps="all files",
    code="weights-changed",
)
def an_official_file_that_changed(at: Bench) -> Seen:
    file = at.root / "weights.pth"
    file.write_bytes(b"another file")
    seen = at.raises(ChangedFileError, lambda: check_hash(file, {"in the plans": "0" * 64}))
    assert "in the plans" in seen.text
    return seen


def _base(at: Bench) -> Any:
    return write_base(at.root, at.patch)


@fault(
    STAGE,
    "The official file that a slim checkpoint leaves its frozen weights in has vanished.",
    happens="refused",
    keeps="the checkpoint, which loads when the file is back",
    code="base-file-missing",
)
def a_vanished_base_file(at: Bench) -> Seen:
    base = _base(at)
    content = slim_state_dict(pretrained(base))
    base.unlink()
    seen = at.raises(BaseFileError, lambda: build().load_state_dict(content))
    return seen


@fault(
    STAGE,
    "The official file that a slim checkpoint needs was replaced by another.",
    happens="refused",
    keeps="the checkpoint, which loads when the file is back",
    code="base-file-changed",
)
def another_base_file(at: Bench) -> Seen:
    base = _base(at)
    content = slim_state_dict(pretrained(base))
    torch.save({"state_dict": build("full", seed=7).state_dict()}, base)
    seen = at.raises(BaseFileError, lambda: build().load_state_dict(content))
    return seen


@fault(
    STAGE,
    "The official file vanishes during a training of a slim model.",
    happens="goes on, with a warning",
    keeps="all weights: the checkpoint is a full one",
)
def a_base_file_that_vanishes_in_training(at: Bench) -> None:
    base = _base(at)
    network = pretrained(base)
    base.unlink()
    with pytest.warns(UserWarning) as warned:
        content = slim_state_dict(network)
    assert same(content, network.state_dict())
    assert base.name in str(warned[0].message)
