"""Two small models with cards, and a server that has their files."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nnunet_fm.models import official
from nnunet_fm.models.build import build_network
from nnunet_fm.models.card import Checkpoint, ModelCard
from nnunet_fm.models.registry import cards

DIMS = {"tiny": [8, 8, 8, 8, 8, 8], "tiny_wide": [8, 8, 8, 8, 8, 16]}


def entry(name: str) -> dict[str, Any]:
    arguments = {"dims": DIMS[name], "depth": [1] * 6, "strides": [[1, 1, 1]] + [[2, 2, 2]] * 5}
    return {"network_class_name": "nnunet_fm.networks.stunet.STUNet", "arch_kwargs": arguments}


def weights(name: str = "tiny", seed: int = 0, classes: int = 7) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return dict(build_network(entry(name), 1, classes).state_dict())


def save(path: Path, name: str = "tiny", seed: int = 0, **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": weights(name, seed), **more}, path)
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves bytes by path, with ranges, and misbehaves on request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.linked: dict[str, str] = {}
        """Path of a redirect -> SHA-256 that is sent with it, as the hub does."""
        self.html: set[str] = set()
        self.cut: dict[str, int] = {}
        """Path -> bytes after which the connection is closed, once."""
        self.tags = True
        self.requests: list[tuple[str, str | None]] = []

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.lstrip("/")
        wanted = self.headers.get("Range")
        self.server.requests.append((path, wanted))
        if path in self.server.redirects:
            self.send_response(302)
            self.send_header("Location", self.server.redirects[path])
            if path in self.server.linked:
                self.send_header("X-Linked-ETag", f'"{self.server.linked[path]}"')
            self.end_headers()
            return
        if path not in self.server.files:
            self.send_error(404)
            return
        content = self.server.files[path]
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        start = 0
        if wanted and self.headers.get("If-Range") == tag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("Content-Type", "text/html" if path in self.server.html else "application/octet-stream")
        if self.server.tags:
            self.send_header("ETag", tag)
        self.end_headers()
        end = self.server.cut.pop(path, len(content))
        self.wfile.write(content[start:end])
        self.close_connection = True


@contextmanager
def running_server() -> Iterator[Server]:
    """A server in a thread of this process, without files at first."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def small_models(server: Server, monkeypatch: pytest.MonkeyPatch) -> dict[str, Checkpoint]:
    """Cards of two small models instead of the real ones; the first file can be downloaded, the others cannot."""
    page = "https://example.org/weights"
    shared = {"page": page, "licence": "CC0", "drop": [r"^seg_outputs\."]}
    files = {
        "tiny": [
            Checkpoint(name="tiny_ct", files=["tiny.model", "small.model"], urls=[server.url("tiny.model")], **shared),
            Checkpoint(name="tiny_mr", files=["tiny_mr.model"], **shared),
        ],
        "tiny_wide": [Checkpoint(name="wide_ct", files=["wide.model"], **shared)],
    }
    made: dict[str, ModelCard] = {}
    for name, checkpoints in files.items():
        real = cards()["stunet_s"]
        network = real.network.model_copy(update={"arguments": {"dims": DIMS[name], "depth": [1] * 6}})
        made[name] = real.model_copy(update={"name": name, "network": network, "checkpoints": checkpoints})
    made["scratch"] = cards()["vanilla_unet3d"].model_copy(update={"name": "scratch"})
    monkeypatch.setattr(official, "cards", lambda: made)
    real_card = official.get_card
    monkeypatch.setattr(official, "get_card", lambda name: made.get(name) or real_card(name))
    return {c.name: c for card in made.values() for c in card.checkpoints}


def serve(server: Server, path: Path, at: str = "tiny.model") -> bytes:
    server.files[at] = path.read_bytes()
    return server.files[at]
