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
from tests.faults.registry import Bench, Outcome, cut_in_half, fault
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


def added(at: Bench, make: Callable[[Path], Path], *more: str) -> Outcome:
    """A file that is added by hand, with cards of two small models in place of the real ones."""
    file = make(at.root / "downloads")
    small_models(Server(), at.patch)
    message = at.fails("weights", "add", file, *more)
    assert not (at.root / "weights").exists() or not list((at.root / "weights").glob("*.model"))
    return Outcome("refused, exit code 1", GONE, message.replace(hashlib.sha256(b"").hexdigest(), "…"))


def pulled(at: Bench, prepare: Callable[[Any, dict[str, Any]], object]) -> Outcome:
    """A download from a server of this process."""
    with running_server() as server:
        models = small_models(server, at.patch)
        serve(server, save(at.root / "served"))
        prepare(server, models)
        message = at.fails("weights", "pull", "tiny")
    assert not (at.root / "weights" / "tiny.model").exists()
    message = message.replace(f":{server.server_port}", "")
    return Outcome("refused, exit code 1", GONE, message)


@fault(STAGE, "The server sends another file than was published.")
def a_download_of_another_hash(at: Bench) -> Outcome:
    outcome = pulled(at, lambda server, models: setattr(models["tiny_ct"], "sha256", "0" * 64))
    found = hashlib.sha256((at.root / "served").read_bytes()).hexdigest()
    return Outcome(outcome.happened, outcome.kept, outcome.message.replace(found, "…").replace("0" * 64, "000…"))


@fault(STAGE, "The server sends a web page, such as a form to sign in.")
def a_web_page_for_a_download(at: Bench) -> Outcome:
    def page(server: Any, models: Any) -> None:
        server.files["tiny.model"] = b"<html>Sign in</html>"
        server.html.add("tiny.model")

    return pulled(at, page)


@fault(STAGE, "The connection ends in the middle of a download.")
def a_connection_that_ends(at: Bench) -> Outcome:
    outcome = pulled(at, lambda server, models: server.cut.update({"tiny.model": 4000}))
    assert (at.root / "weights" / "tiny.model.part").stat().st_size == 4000
    message = outcome.message.replace(f"{(at.root / 'served').stat().st_size:,}", "N")
    return Outcome("exit code 1", "what has arrived; the same command goes on from there", message)


@fault(STAGE, "A web page was saved as the weights file and is added.")
def a_web_page_that_is_added(at: Bench) -> Outcome:
    def page(folder: Path) -> Path:
        folder.mkdir()
        (folder / "small.model").write_text("<html>Sign in</html>")
        return folder / "small.model"

    return added(at, page)


@fault(STAGE, "A weights file is cut off.")
def weights_cut_off(at: Bench) -> Outcome:
    def cut(folder: Path) -> Path:
        file = save(folder / "small.model")
        cut_in_half(file)
        return file

    return added(at, cut)


@fault(STAGE, "A zip of weights is cut off.")
def a_zip_of_weights_cut_off(at: Bench) -> Outcome:
    def cut(folder: Path) -> Path:
        file = save(folder / "small.model")
        with zipfile.ZipFile(folder / "weights.zip", "w") as archive:
            archive.write(file, "small.model")
        cut_in_half(folder / "weights.zip")
        return folder / "weights.zip"

    return added(at, cut)


@fault(STAGE, "A weights file would run a program when it is read.")
def weights_that_run_code(at: Bench) -> Outcome:
    ran = at.root / "ran"

    def hostile(folder: Path) -> Path:
        folder.mkdir()
        torch.save({"state_dict": {"a": Runs(ran)}}, folder / "small.model")
        return folder / "small.model"

    outcome = added(at, hostile)
    assert not ran.exists()
    return Outcome("refused, nothing runs, exit code 1", GONE, outcome.message)


@fault(STAGE, "Weights of a larger network are added under the name of a smaller one.")
def weights_of_another_size(at: Bench) -> Outcome:
    return added(at, lambda folder: save(folder / "tiny.model", "tiny_wide"))


@fault(STAGE, "Weights of a network that no card knows.")
def weights_of_an_unknown_network(at: Bench) -> Outcome:
    def unknown(folder: Path) -> Path:
        folder.mkdir()
        torch.save({"state_dict": {"a": torch.ones(1)}}, folder / "other.pth")
        return folder / "other.pth"

    return added(at, unknown)


@fault(STAGE, "An official file changed between planning and training.")
def an_official_file_that_changed(at: Bench) -> Outcome:
    file = at.root / "weights.pth"
    file.write_bytes(b"another file")
    message = at.raises(ChangedFileError, lambda: check_hash(file, {"in the plans": "0" * 64}))
    return Outcome("refused before anything is built", "all files", message.replace("0" * 64, "000…"))


def _base(at: Bench) -> Any:
    return write_base(at.root, at.patch)


@fault(STAGE, "The official file that a slim checkpoint leaves its frozen weights in has vanished.")
def a_vanished_base_file(at: Bench) -> Outcome:
    base = _base(at)
    content = slim_state_dict(pretrained(base))
    base.unlink()
    message = at.raises(BaseFileError, lambda: build().load_state_dict(content))
    return Outcome("refused", "the checkpoint, which loads when the file is back", _short(message))


@fault(STAGE, "The official file that a slim checkpoint needs was replaced by another.")
def another_base_file(at: Bench) -> Outcome:
    base = _base(at)
    content = slim_state_dict(pretrained(base))
    torch.save({"state_dict": build("full", seed=7).state_dict()}, base)
    message = at.raises(BaseFileError, lambda: build().load_state_dict(content))
    return Outcome("refused", "the checkpoint, which loads when the file is back", _short(message))


@fault(STAGE, "The official file vanishes during a training of a slim model.")
def a_base_file_that_vanishes_in_training(at: Bench) -> Outcome:
    base = _base(at)
    network = pretrained(base)
    base.unlink()
    with pytest.warns(UserWarning) as warned:
        content = slim_state_dict(network)
    assert same(content, network.state_dict())
    message = at.shown(str(warned[0].message))
    return Outcome("goes on, with a warning", "all weights: the checkpoint is a full one", _short(message))


def _short(message: str) -> str:
    """Hashes of files that differ from one version of PyTorch to the next."""
    words = message.split()
    return " ".join("…" + w[64:] if len(w) >= 64 and all(c in "0123456789abcdef" for c in w[:64]) else w for w in words)
