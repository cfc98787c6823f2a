"""Checkpoint files are read without running code, whatever they are packed in."""

from __future__ import annotations

import gzip
import os
import pickle
import re
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nnunet_fm.weights.files import WeightsFileError, read_state_dict, read_trained
from tests.helpers.errors import fails
from tests.helpers.official_weights import load_official
from tests.helpers.weight_files import same, seeded, small_file, v1_content


@pytest.mark.parametrize("container", [None, "state_dict", "network_weights", "model", "net", "odd"])
@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_containers_and_wrappers_are_taken_off(tmp_path: Path, container: str | None, wrapper: str) -> None:
    weights = small_file()
    content: object = {wrapper + n: t for n, t in weights.items()}
    torch.save({container: content, "epoch": 3} if container else content, tmp_path / "a.pth")
    assert same(read_state_dict(tmp_path / "a.pth", ["odd"]), weights)


def test_a_prefix_that_not_all_names_carry_stays(tmp_path: Path) -> None:
    weights = {"module.a": torch.ones(2), "b": torch.ones(2)}
    torch.save(weights, tmp_path / "a.pth")
    assert list(read_state_dict(tmp_path / "a.pth")) == ["module.a", "b"]


@pytest.mark.parametrize("zipped", [True, False])
def test_nnunet_v1_model_with_numpy_scalars(tmp_path: Path, zipped: bool) -> None:
    torch.save(v1_content(small_file()), tmp_path / "a.model", _use_new_zipfile_serialization=zipped)
    assert same(read_state_dict(tmp_path / "a.model"), small_file())


def test_numpy_scalars_of_numpy_1(tmp_path: Path) -> None:
    """numpy 1 wrote ``numpy.core`` where numpy 2 writes ``numpy._core``."""
    torch.save(v1_content(small_file()), tmp_path / "new.model")
    with zipfile.ZipFile(tmp_path / "new.model") as new, zipfile.ZipFile(tmp_path / "old.model", "w") as old:
        for item in new.infolist():
            content = new.read(item)
            if item.filename.endswith("data.pkl"):
                assert b"multiarray" in content
                content = re.sub(rb"cnumpy\._?core\.multiarray\n", b"cnumpy.core.multiarray\n", content)
            old.writestr(item, content)
    assert same(read_state_dict(tmp_path / "old.model"), small_file())


def test_reading_leaves_no_global_allowed(tmp_path: Path) -> None:
    torch.save(v1_content(small_file()), tmp_path / "a.model")
    before = set(torch.serialization.get_safe_globals())
    read_state_dict(tmp_path / "a.model")
    assert set(torch.serialization.get_safe_globals()) == before


class Bomb:
    """Unpickling this runs a command."""

    def __init__(self, function: object, *args: object) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ["touch {mark}"], f"{os.name}.system"),
        (eval, ["open('{mark}', 'w').close()"], "eval"),
        (shutil.copy, [__file__, "{mark}"], "shutil.copy"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_refused_and_not_run(
    tmp_path: Path, function: object, arguments: list[str], name: str, zipped: bool
) -> None:
    mark, file = tmp_path / "mark", tmp_path / "evil.pth"
    bomb = Bomb(function, *(a.format(mark=mark) for a in arguments))
    torch.save({"state_dict": small_file(), "x": bomb}, file, _use_new_zipfile_serialization=zipped)
    with fails("weights-refused", f"asks to run '{name}'") as error:
        read_state_dict(file)
    assert str(file) in str(error.value)
    assert not mark.exists()
    torch.load(file, weights_only=False)  # the trap itself works
    assert mark.exists()


def test_plain_pickle_that_would_run_code(tmp_path: Path) -> None:
    file = tmp_path / "evil.pkl"
    file.write_bytes(pickle.dumps(Bomb(os.system, f"touch {tmp_path / 'mark'}"), protocol=4))
    with fails("weights-damaged", "evil.pkl"):
        read_state_dict(file)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.001, 0.3, 0.98])
def test_truncated_file(tmp_path: Path, zipped: bool, share: float) -> None:
    file = tmp_path / "cut.pth"
    torch.save({"state_dict": seeded({"a": [200, 200]})}, file, _use_new_zipfile_serialization=zipped)
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    with pytest.raises(WeightsFileError, match=file.name) as error:
        read_state_dict(file)
    assert error.value.code in ("weights-cut-off", "weights-damaged")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", ("weights-empty",)),
        (b"<html>Sign in</html>", ("weights-kind",)),
        ("Gewichte für alle\n".encode(), ("weights-damaged",)),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), ("weights-damaged",)),
        (b"\xef\xbb\xbf\n<!DOCTYPE html><title>Quota exceeded</title>", ("weights-kind",)),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 58000000\n",
            ("weights-kind", "git lfs pull"),
        ),
        (b"Rar!\x1a\x07\x01\x00" + bytes(100), ("weights-kind", "RAR")),
        (b"7z\xbc\xaf\x27\x1c" + bytes(100), ("weights-kind", "7z")),
        (gzip.compress(b"a", mtime=0), ("weights-kind", "gzip")),
        (b"a".ljust(257, b"\0") + b"ustar\x0000" + bytes(300), ("weights-kind", "tar archive")),
        (
            (64).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,800]}}'.ljust(64),
            ("weights-damaged", "safetensors"),
        ),
    ],
)
def test_files_that_are_no_checkpoint(tmp_path: Path, content: bytes, expected: tuple[str, ...]) -> None:
    file = tmp_path / "a.pth"
    file.write_bytes(content)
    with fails(*expected, file) as error:
        read_state_dict(file)
    assert "\n" not in str(error.value)


def test_the_companion_of_weights_names_the_weights(tmp_path: Path) -> None:
    (tmp_path / "base_ep4k.model.pkl").write_bytes(pickle.dumps({"init": ("plans",), "name": "nnUNetTrainerV2"}))
    with fails("weights-kind", "base_ep4k.model"):
        read_state_dict(tmp_path / "base_ep4k.model.pkl")


def test_safetensors_are_read_whatever_their_name(tmp_path: Path) -> None:
    tensors = {"module.a": torch.rand(2, 3), "module.b": torch.ones((), dtype=torch.int64)}
    save_file(tensors, tmp_path / "official.pth")
    read = read_state_dict(tmp_path / "official.pth")
    assert read.keys() == {"a", "b"} and all(torch.equal(read[n], tensors[f"module.{n}"]) for n in read)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(tmp_path: Path, value: float) -> None:
    network = nn.Linear(3, 2)
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    weights["weight"][1, 2] = value
    with fails("weights-not-finite", "weight", "1", "6"):
        load_official(network, weights)
    assert network.weight.isfinite().all(), "nothing is changed"
    torch.save({"network_weights": weights}, tmp_path / "checkpoint_final.pth")
    with fails("weights-not-finite", "weight"):
        read_trained(tmp_path / "checkpoint_final.pth")
    large = {"weight": torch.full((2, 3), 3e38), "bias": torch.zeros(2)}  # finite, and their sum is not
    load_official(network, large)
    load_official(network, {**large, "unused": torch.tensor(value)}, drop=["unused"])


def test_an_archive_that_is_no_checkpoint(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("ckpt_best.pth", b"x")
    with fails("weights-kind"):
        read_state_dict(tmp_path / "a.zip")


@pytest.mark.parametrize("content", [{"epoch": 3, "weights": {"a": torch.ones(2)}}, {}, [torch.ones(2)], torch.ones(2)])
def test_file_without_a_state_dict(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "a.pth")
    with fails("weights-content"):
        read_state_dict(tmp_path / "a.pth")


def test_a_file_saved_on_a_gpu_opens_on_a_cpu(tmp_path: Path) -> None:
    torch.save({"state_dict": small_file()}, tmp_path / "cpu.pth")
    with zipfile.ZipFile(tmp_path / "cpu.pth") as cpu, zipfile.ZipFile(tmp_path / "gpu.pth", "w") as gpu:
        for item in cpu.infolist():
            content = cpu.read(item)
            if item.filename.endswith("data.pkl"):
                place = b"X\x03\x00\x00\x00cpu"
                assert place in content
                content = content.replace(place, b"X\x06\x00\x00\x00cuda:0")
            gpu.writestr(item, content)
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):
            torch.load(tmp_path / "gpu.pth")
    read = read_state_dict(tmp_path / "gpu.pth")
    assert same(read, small_file()) and all(t.device.type == "cpu" for t in read.values())
