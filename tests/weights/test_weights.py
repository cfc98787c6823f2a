"""Official files are read without running code, and loaded with every key accounted for."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from nnunet_fm.models.official import check, get_official, officials, recognise
from nnunet_fm.weights import cache
from nnunet_fm.weights.cache import MissingWeightsError, cache_folder, find, locate, sha256
from nnunet_fm.weights.files import NotFiniteWeightsError, WeightsFileError, read_state_dict, read_trained
from nnunet_fm.weights.load import WeightsMismatchError, adapt_channels, check_official, load_checkpoint, load_official

MANIFESTS = Path(__file__).parents[1] / "manifests"
STRIDES = [[1, 1, 1]] + [[2, 2, 2]] * 5
STUNET_DROP = [r"seg_outputs\."]


def seeded(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """A tensor for every name, different for each, the same on every call."""
    generator = torch.Generator()
    return OrderedDict(
        (name, 0.1 * torch.randn(shape, generator=generator.manual_seed(zlib.crc32(name.encode()))))
        for name, shape in shapes.items()
    )


def official(manifest: str, classes: int | None = None) -> dict[str, Tensor]:
    """The official state dict of a manifest; STU-Net's with the released number of classes."""
    shapes = json.loads((MANIFESTS / f"{manifest}.json").read_text())["state_dict"]
    if classes is not None:
        shapes = {n: [classes, *s[1:]] if n.startswith("seg_outputs") else s for n, s in shapes.items()}
    return seeded(shapes)


@pytest.fixture(scope="module")
def stunet_file() -> dict[str, Tensor]:
    return official("stunet_small", classes=105)


def stunet(channels: int = 1, classes: int = 5) -> nn.Module:
    from nnunet_fm.networks.stunet import STUNet

    return STUNet(channels, classes, dims=[16, 32, 64, 128, 256, 256], depth=[1] * 6, strides=STRIDES)


class Small(nn.Module):
    """Three tensors: a projection of the input, a body and a head."""

    keys_to_in_proj = ("stem",)
    key_to_head = ("head",)

    def __init__(self, channels: int = 1, classes: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 4, 3, bias=False)
        self.body = nn.Linear(4, 4, bias=False)
        self.head = nn.Linear(4, classes, bias=False)


def small_file(channels: int = 1, classes: int = 2) -> dict[str, Tensor]:
    return seeded({n: list(t.shape) for n, t in Small(channels, classes).state_dict().items()})


# --- cache --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path))
    return tmp_path


def test_cache_folder_follows_the_variable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == folder
    monkeypatch.setenv(cache.CACHE_VARIABLE, "~/elsewhere")
    assert cache_folder() == Path.home() / "elsewhere"
    monkeypatch.delenv(cache.CACHE_VARIABLE)
    assert cache_folder() == Path.home() / ".cache/nnunet_fm/weights"


def test_any_of_the_names_is_found(folder: Path) -> None:
    assert find(["a.pth", "b.pth"]) is None
    (folder / "b.pth").touch()
    assert find(["a.pth", "b.pth"]) == folder / "b.pth"
    assert locate("ab", ["a.pth", "b.pth"], page="", scratch="") == folder / "b.pth"


def test_missing_file_says_what_to_do(folder: Path) -> None:
    with pytest.raises(MissingWeightsError) as error:
        locate("stunet_small", ["a.model", "b.model"], page="https://example.org/x", scratch="fm_trainer_scratch")
    for part in ("stunet_small", "a.model", "b.model", "https://example.org/x", str(folder), "fm_trainer_scratch"):
        assert part in str(error.value)


def test_hash_is_computed_once_per_content(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / "a.pth"
    file.write_bytes(b"one")
    assert sha256(file) == hashlib.sha256(b"one").hexdigest()
    with monkeypatch.context() as patch:
        patch.setattr(cache, "compute_sha256", lambda path: pytest.fail("hashed again"))
        assert sha256(file) == hashlib.sha256(b"one").hexdigest()
    file.write_bytes(b"two!")
    assert sha256(file) == hashlib.sha256(b"two!").hexdigest()
    status = file.stat()
    file.write_bytes(b"tri!")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert sha256(file) == hashlib.sha256(b"tri!").hexdigest()


@pytest.mark.parametrize("content", ["", "[]", '{"a.pth": 3}', '{"a.pth": {"sha256": "x"}}'])
def test_damaged_hash_memory_is_ignored(folder: Path, content: str) -> None:
    (folder / cache.HASH_FILE).write_text(content)
    (folder / "a.pth").write_bytes(b"one")
    assert sha256(folder / "a.pth") == hashlib.sha256(b"one").hexdigest()


def test_hash_without_a_writable_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "a.pth").write_bytes(b"one")

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "write_text", refuse)
    assert sha256(folder / "a.pth") == hashlib.sha256(b"one").hexdigest()
    monkeypatch.setattr(cache, "compute_sha256", lambda path: pytest.fail("hashed again"))
    assert sha256(folder / "a.pth") == hashlib.sha256(b"one").hexdigest()


# --- files --------------------------------------------------------------------------------------------------------


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[n], b[n]) for n in a)


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


def v1_content(weights: dict[str, Tensor]) -> dict[str, object]:
    """What nnU-Net v1 saves beside the weights: numpy scalars in lists, an optimiser state, None."""
    losses = [np.mean([0.1, 0.2]), np.float32(0.5), np.int64(3), np.bool_(True)]
    return {
        "epoch": 4000,
        "state_dict": weights,
        "optimizer_state_dict": {
            "state": {0: {"momentum_buffer": torch.ones(3)}},
            "param_groups": [{"lr": np.float64(1e-2)}],
        },
        "lr_scheduler_state_dict": None,
        "plot_stuff": (losses, losses, [], losses),
        "best_stuff": [None, np.float64(0.9), 0.8],
        "amp_grad_scaler": {"scale": 65536.0, "_growth_tracker": 3},
    }


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
    with pytest.raises(WeightsFileError, match=re.escape(f"asks to run '{name}'")) as error:
        read_state_dict(file)
    assert str(file) in str(error.value)
    assert not mark.exists()
    torch.load(file, weights_only=False)  # the trap itself works
    assert mark.exists()


def test_plain_pickle_that_would_run_code(tmp_path: Path) -> None:
    file = tmp_path / "evil.pkl"
    file.write_bytes(pickle.dumps(Bomb(os.system, f"touch {tmp_path / 'mark'}"), protocol=4))
    with pytest.raises(WeightsFileError, match=r"evil\.pkl"):
        read_state_dict(file)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.001, 0.3, 0.98])
def test_truncated_file(tmp_path: Path, zipped: bool, share: float) -> None:
    file = tmp_path / "cut.pth"
    torch.save({"state_dict": seeded({"a": [200, 200]})}, file, _use_new_zipfile_serialization=zipped)
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    with pytest.raises(WeightsFileError, match=r"cut\.pth is .*download (or copy )?it again"):
        read_state_dict(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<html>Sign in</html>", "no PyTorch checkpoint"),
        ("Gewichte für alle\n".encode(), "no PyTorch checkpoint"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "no PyTorch checkpoint"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html><title>Quota exceeded</title>", "web page.*by hand"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 58000000\n",
            "pointer of Git LFS.*git lfs pull",
        ),
        (b"Rar!\x1a\x07\x01\x00" + bytes(100), "RAR archive: unpack it first"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(100), "7z archive: unpack it first"),
        (gzip.compress(b"a", mtime=0), "gzip file: unpack it first"),
        (b"a".ljust(257, b"\0") + b"ustar\x0000" + bytes(300), "tar archive: unpack it first"),
        (
            (64).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,800]}}'.ljust(64),
            "damaged safetensors",
        ),
    ],
)
def test_files_that_are_no_checkpoint(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "a.pth"
    file.write_bytes(content)
    with pytest.raises(WeightsFileError, match=message) as error:
        read_state_dict(file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_the_companion_of_weights_names_the_weights(tmp_path: Path) -> None:
    (tmp_path / "base_ep4k.model.pkl").write_bytes(pickle.dumps({"init": ("plans",), "name": "nnUNetTrainerV2"}))
    with pytest.raises(WeightsFileError, match=r"take base_ep4k\.model, which lies beside it"):
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
    with pytest.raises(NotFiniteWeightsError, match=r"tensor 'weight' has 1 values that are no numbers.*of 6"):
        load_official(network, weights)
    assert network.weight.isfinite().all(), "nothing is changed"
    torch.save({"network_weights": weights}, tmp_path / "checkpoint_final.pth")
    with pytest.raises(NotFiniteWeightsError, match="tensor 'weight'"):
        read_trained(tmp_path / "checkpoint_final.pth")
    large = {"weight": torch.full((2, 3), 3e38), "bias": torch.zeros(2)}  # finite, and their sum is not
    load_official(network, large)
    load_official(network, {**large, "unused": torch.tensor(value)}, drop=["unused"])


def test_an_archive_that_is_no_checkpoint(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("ckpt_best.pth", b"x")
    with pytest.raises(WeightsFileError, match="unpack it"):
        read_state_dict(tmp_path / "a.zip")


@pytest.mark.parametrize("content", [{"epoch": 3, "weights": {"a": torch.ones(2)}}, {}, [torch.ones(2)], torch.ones(2)])
def test_file_without_a_state_dict(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(WeightsFileError, match="state dict"):
        read_state_dict(tmp_path / "a.pth")


# What the released files hold beside the weights, as their programs write it.
BESIDE: dict[str, dict[str, object]] = {
    "stunet": {key: value for key, value in v1_content({}).items() if key != "state_dict"},
    "stunet v2": {
        "optimizer_state": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 1e-3}]},
        "logging": {"mean_fg_dice": [np.float64(0.5)], "epoch_end_timestamps": [1.0]},
        "init_args": {"fold": 0, "device": torch.device("cuda")},
        "inference_allowed_mirroring_axes": (0, 1, 2),
    },
    "suprem": {
        "optimizer": {"state": {}, "param_groups": [{"betas": (0.9, 0.999), "params": [0]}]},
        "scheduler": {"warmup_epochs": 20, "base_lrs": [1e-4], "_step_count": 3, "_last_lr": [np.float64(1e-4)]},
        "epoch": 2100,
    },
    "dae": {"optimizer": {}, "lr_scheduler": {"t_initial": 10, "noise_range_t": None}, "max_accuracy": 0.0, "epoch": 3},
    "spadnet": {
        "pytorch-lightning_version": "2.0.4",
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.ones(()), "dirpath": "a/b"}},
        "loops": {"fit_loop": {"epoch_progress": {"total": {"ready": 1}}}},
        "optimizer_states": [{"state": {0: {"step": torch.ones(())}}}],
        "lr_schedulers": [OrderedDict(last_epoch=3)],
    },
    "misfm": {"iteration": 6000, "valid_pred": np.float64(0.8), "optimizer_state_dict": {"state": {}}},
    "swinmm": {"global_step": 100, "optimizer": {}, "best_acc": np.float32(0.8)},
}
CONTAINERS_OF_FILES = {
    "stunet": ("state_dict", ""),
    "stunet v2": ("network_weights", ""),
    "suprem": ("net", "module.backbone."),
    "dae": ("model", "encoder."),
    "spadnet": ("state_dict", ""),
    "misfm": ("model_state_dict", "module."),
    "swinmm": ("state_dict", "module."),
}


@pytest.mark.parametrize("model", CONTAINERS_OF_FILES)
def test_containers_prefixes_and_company_of_the_official_files(tmp_path: Path, model: str) -> None:
    container, prefix = CONTAINERS_OF_FILES[model]
    content = {f"{prefix}{n}": t for n, t in small_file().items()}
    torch.save({container: content, **BESIDE[model]}, tmp_path / "a.pth")
    network = Small()
    (section,) = load_checkpoint(network, tmp_path / "a.pth", prefix=prefix).sections
    assert len(section.matched) == 3 and same(network.state_dict(), small_file())


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


# --- load ---------------------------------------------------------------------------------------------------------


def test_whole_network_loads_and_every_name_is_accounted_for() -> None:
    network, file = Small(), small_file()
    (section,) = load_official(network, file).sections
    assert sorted(section.matched) == sorted(file)
    assert not section.adapted
    assert not section.dropped
    assert not section.missing
    assert same(network.state_dict(), file)


@pytest.mark.parametrize(("old", "new"), [(1, 4), (3, 1), (3, 5), (2, 2)])
def test_channels_keep_the_scale_of_an_image_repeated_over_them(old: int, new: int) -> None:
    weight = torch.randn(4, old, 3, 3)
    adapted = adapt_channels(weight, new)
    assert adapted.shape == (4, new, 3, 3)
    grey = torch.randn(2, 1, 8, 8)
    before = nn.functional.conv2d(grey.expand(-1, old, -1, -1), weight)
    after = nn.functional.conv2d(grey.expand(-1, new, -1, -1), adapted)
    assert torch.allclose(before, after, atol=1e-5)


def test_loading_happens_in_place_and_casts() -> None:
    network = Small()
    places = {n: p.data_ptr() for n, p in network.named_parameters()}
    load_official(network, {n: t.half() for n, t in small_file().items()})
    assert {n: p.data_ptr() for n, p in network.named_parameters()} == places
    assert network.body.weight.dtype == torch.float32
    assert network.body.weight.requires_grad
    assert network.body.weight.grad_fn is None


@pytest.mark.parametrize("fault", ["missing", "unexpected", "shape"])
def test_misfits_are_named_and_nothing_is_changed(fault: str) -> None:
    network, file = Small(), small_file()
    before = {n: t.clone() for n, t in network.state_dict().items()}
    if fault == "missing":
        del file["body.weight"]
    elif fault == "unexpected":
        file["extra.weight"] = torch.ones(3)
    else:
        file["body.weight"] = torch.ones(4, 6)
    message = {
        "missing": "1 missing in the file: body.weight",
        "unexpected": "1 only in the file: extra.weight",
        "shape": r"body.weight \[4, 6\] in the file, \[4, 4\] in the network",
    }
    with pytest.raises(WeightsMismatchError, match=message[fault]) as error:
        load_official(network, file)
    assert [error.value.missing, error.value.unexpected, list(error.value.shapes)].count([]) == 2
    assert same(network.state_dict(), before)


def test_only_the_declared_projection_is_adapted() -> None:
    file = small_file(channels=3)
    assert "stem.weight" in load_official(Small(), file).sections[0].adapted
    network = Small()
    network.keys_to_in_proj = ()  # type: ignore[assignment]
    with pytest.raises(WeightsMismatchError, match=r"stem\.weight"):
        load_official(network, file)
    file["stem.weight"] = file["stem.weight"][..., :1]
    with pytest.raises(WeightsMismatchError, match=r"stem\.weight"):
        load_official(Small(), file)


def test_dropping_and_prefix() -> None:
    file = {f"enc.{n}": t for n, t in small_file().items()}
    file |= {"enc.mask_token": torch.ones(1), "other.x": torch.ones(1)}
    (section,) = load_official(Small(), file, drop=["mask_token$"], prefix="enc.").sections
    assert len(section.matched) == 3
    assert section.dropped == {"enc.mask_token": "on purpose ('mask_token$')", "other.x": "not under 'enc.'"}
    with pytest.raises(WeightsMismatchError, match="mask_token"):
        load_official(Small(), file, prefix="enc.")


def test_a_file_without_the_prefix_is_taken_as_it_is() -> None:
    """Fine-tuned files hold the network alone, pre-trained ones more than it."""
    network = Small()
    (section,) = load_official(network, small_file(), prefix="enc.").sections
    assert len(section.matched) == 3 and not section.dropped


def test_new_parts_start_at_random() -> None:
    network, file = Small(), small_file()
    before = network.body.weight.clone()
    del file["body.weight"]
    (section,) = load_official(network, file, new=["^body"]).sections
    assert section.missing == {"body.weight": "not in the file, starts at random"}
    assert torch.equal(network.body.weight, before)
    with pytest.raises(WeightsMismatchError, match=r"1 missing in the file: body\.weight"):
        load_official(network, file, new=["^bod$"])
    file["body.weight"] = torch.ones(4, 5)  # new parts may be missing, not wrong
    with pytest.raises(WeightsMismatchError, match=r"body\.weight \[4, 5\]"):
        load_official(network, file, new=["^body"])


class WithLora(nn.Module):
    """A projection, a body and a head whose linear layers have low-rank updates."""

    keys_to_in_proj = ("stem",)
    key_to_head = ("head",)

    def __init__(self, channels: int = 1, classes: int = 2) -> None:
        super().__init__()
        from peft import LoraConfig, inject_adapter_in_model

        inner = Small(channels, classes)
        inject_adapter_in_model(LoraConfig(r=2, target_modules=["stem", "body", "head"]), inner)
        self.stem, self.body, self.head = inner.stem, inner.body, inner.head


def test_layers_with_low_rank_updates_load_under_their_official_names() -> None:
    network, file = WithLora(channels=3, classes=5), small_file()
    before = {n: t.clone() for n, t in network.state_dict().items()}
    (section,) = load_official(network, file).sections
    assert section.matched == ["body.base_layer.weight"]
    assert list(section.adapted) == ["stem.weight"]
    updates = {n for n in before if ".lora_" in n}
    assert section.missing.keys() == updates | {"head.base_layer.weight"} and len(updates) == 6
    assert section.missing["body.lora_A.default.weight"] == "adapter, starts at its initial values"
    after = network.state_dict()
    assert torch.equal(after["body.base_layer.weight"], file["body.weight"])
    assert all(torch.equal(after[n], before[n]) for n in updates)
    with pytest.raises(WeightsMismatchError, match=r"missing in the file: body\.base_layer\.weight"):
        load_official(network, {n: t for n, t in file.items() if n != "body.weight"})


def test_checking_copies_nothing_and_needs_no_memory() -> None:
    network = Small(channels=2)
    before = {n: t.clone() for n, t in network.state_dict().items()}
    expected = str(load_official(Small(channels=2), small_file(classes=7)))
    assert str(check_official(network, small_file(classes=7))) == expected
    assert same(network.state_dict(), before)
    with torch.device("meta"):
        empty = Small(channels=2)
    assert str(check_official(empty, small_file(classes=7))) == expected
    with pytest.raises(WeightsMismatchError, match=r"body\.weight"):
        check_official(empty, {})


def test_a_network_that_converts_is_loaded_as_a_whole() -> None:
    """Even if it has a submodule of the part's name."""

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.decoder = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)

        def from_official(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
            if "alien" in state_dict:
                raise ValueError("this is the file of another network")
            return {f"backbone.{n}": t for n, t in state_dict.items()}

    network = Whole()
    (section,) = load_official(network, {"weight": torch.ones(2, 2)}, new=[r"^decoder\."]).sections
    assert section.matched == ["backbone.weight"] and list(section.missing) == ["decoder.weight"]
    assert torch.equal(network.backbone.weight, torch.ones(2, 2))
    with pytest.raises(WeightsFileError, match=r"file\.pth: this is the file of another network"):
        load_official(network, {"alien": torch.ones(1)}, file=Path("folder/file.pth"))


class Translating(Small):
    """Official names differ, and its body was made for another size."""

    def from_official(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        own = {n.replace("old.", ""): t for n, t in state_dict.items()}
        if "table.weight" in own:
            own["body.weight"] = own.pop("table.weight")[:4, :4] * own.pop("gain.weight")
        return own


def test_a_networks_own_conversion_is_accounted_for() -> None:
    file = {f"old.{n}": t for n, t in small_file().items() if n != "body.weight"}
    file |= {"old.table.weight": torch.ones(6, 6), "old.gain.weight": torch.full((1,), 2.0)}
    network = Translating()
    (section,) = load_official(network, file).sections
    assert sorted(section.matched) == ["head.weight", "stem.weight"]
    assert list(section.adapted) == ["body.weight"]
    assert sorted(section.dropped) == ["old.gain.weight", "old.table.weight"]
    assert torch.equal(network.body.weight, torch.full((4, 4), 2.0))
    with pytest.raises(WeightsMismatchError, match="stray"):
        load_official(Translating(), file | {"old.stray": torch.ones(1)})


def test_a_part_loads_into_the_submodule_of_that_name() -> None:
    network = nn.Module()
    network.backbone, network.head = Small(), nn.Linear(2, 2)
    network.key_to_head = ("head",)  # type: ignore[assignment]
    network.keys_to_in_proj = ("backbone.stem",)  # type: ignore[assignment]
    (section,) = load_official(network, small_file(channels=3)).sections
    assert "stem.weight" in section.adapted
    with pytest.raises(WeightsMismatchError, match=r"head\.weight"):  # the backbone's own head is not the network's
        load_official(network, {n: t for n, t in small_file().items() if n != "head.weight"})


def test_report_in_both_forms(tmp_path: Path) -> None:
    torch.save({"net": small_file(channels=3, classes=7)}, tmp_path / "a.pth")
    report = load_checkpoint(Small(), tmp_path / "a.pth") + load_official(Small(), small_file(), part="neck")
    report.write(tmp_path)
    first, second = json.loads((tmp_path / "weights_report.json").read_text())
    assert first["part"] == "backbone"
    assert first["file"] == "a.pth"
    assert first["sha256"] == hashlib.sha256((tmp_path / "a.pth").read_bytes()).hexdigest()
    assert first["counts"] == {"matched": 1, "adapted": 1, "dropped": 1, "missing": 1}
    assert second["part"] == "neck"
    text = (tmp_path / "weights_report.txt").read_text()
    for line in ("backbone: a.pth", "matched 1 tensors", "stem.weight: input channels 3 -> 1", "neck: a state dict"):
        assert line in text


# --- official files -----------------------------------------------------------------------------------------------


def test_stunet_with_four_channels_and_five_classes(tmp_path: Path, stunet_file: dict[str, Tensor]) -> None:
    torch.save(v1_content({f"module.{n}": t for n, t in stunet_file.items()}), tmp_path / "small_ep4k.model")
    network = stunet(channels=4)
    report = load_checkpoint(network, tmp_path / "small_ep4k.model", containers=["state_dict"], drop=STUNET_DROP)
    (section,) = report.sections
    projections = ["conv_blocks_context.0.0.conv1.weight", "conv_blocks_context.0.0.conv3.weight"]
    assert sorted(section.adapted) == projections
    assert len(section.matched) == 130 - 10 - 2
    assert len(section.dropped) == len(section.missing) == 10
    own = network.state_dict()
    assert all(torch.equal(own[n], stunet_file[n]) for n in section.matched)
    for name in projections:
        assert torch.equal(own[name], (stunet_file[name] / 4).expand_as(own[name]))


def test_stunet_v2_file(tmp_path: Path, stunet_file: dict[str, Tensor]) -> None:
    torch.save({"network_weights": stunet_file, "optimizer_state": None}, tmp_path / "small.pth")
    (section,) = load_checkpoint(stunet(classes=105), tmp_path / "small.pth", drop=STUNET_DROP).sections
    assert len(section.matched) == 120


def test_stunet_file_of_another_size_or_with_a_lost_key(tmp_path: Path, stunet_file: dict[str, Tensor]) -> None:
    shapes = json.loads((MANIFESTS / "stunet_base.json").read_text())["state_dict"]
    base = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    with pytest.raises(WeightsMismatchError, match="another size of the model") as error:
        load_official(stunet(), base, drop=STUNET_DROP)
    assert error.value.shapes["conv_blocks_context.0.0.norm1.weight"] == ([32], [16])
    lost = {n: t for n, t in stunet_file.items() if n != "upsample_layers.2.conv.bias"}
    torch.save({"state_dict": lost}, tmp_path / "small_ep4k.model")
    with pytest.raises(
        WeightsMismatchError, match=r"small_ep4k.* 1 missing in the file: upsample_layers\.2\.conv\.bias"
    ):
        load_checkpoint(stunet(), tmp_path / "small_ep4k.model", drop=STUNET_DROP)


def test_stunet_on_stock_plans_of_this_nnunet(tmp_path: Path) -> None:
    """Plans hold the network's arguments since 2.4, and no ``pool_op_kernel_sizes``."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_fm.trainers import fm_trainer_stunet_s

    strides = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]]
    stock = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [16, 32, 32],
        "spacing": [3.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"] * 4,
        "use_mask_for_norm": [False] * 4,
        "architecture": {
            "network_class_name": stock,
            "arch_kwargs": {"n_stages": 4, "features_per_stage": [32, 64, 128, 256], "strides": strides},
            "_kw_requires_import": [],
        },
    }
    plans = {
        "plans_name": "nnUNetPlans",
        "dataset_name": "Dataset001_X",
        "transpose_forward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
    }
    manager = PlansManager(plans)
    assert "pool_op_kernel_sizes" not in json.dumps(plans)
    network = fm_trainer_stunet_s.build_network_architecture(manager, manager.get_configuration("3d_fullres"), 4, 5)
    assert network.strides[:3] == strides[1:]
    torch.save({"state_dict": official("stunet_small", classes=105)}, tmp_path / "small_ep4k.model")
    (section,) = load_checkpoint(network, tmp_path / "small_ep4k.model", drop=STUNET_DROP).sections
    assert (len(section.matched), len(section.adapted)) == (118, 2)


def manifest_file(
    path: Path, manifest: str, container: str | None = None, prefix: str = "", classes: int = 105
) -> Path:
    """A file with the names and shapes of a manifest that takes no space: every tensor is one repeated number."""
    content = json.loads((MANIFESTS / f"{manifest}.json").read_text())
    types = content.get("dtypes_not_float32", {})
    state_dict = {}
    for name, shape in content["state_dict"].items():
        size = [classes, *shape[1:]] if name.startswith("seg_outputs") else shape
        dtype = getattr(torch, types.get(name, "torch.float32").removeprefix("torch."))
        state_dict[f"{prefix}{name}"] = torch.full((), 0.5).to(dtype).expand(size)
    torch.save({container: state_dict} if container else state_dict, path)
    return path


OFFICIAL_FILES: dict[str, tuple[str, str | None, str]] = {
    "stunet_small_totalsegmentator": ("stunet_small", "state_dict", ""),
    "stunet_base_totalsegmentator": ("stunet_base", "state_dict", ""),
    "stunet_large_totalsegmentator": ("stunet_large", "network_weights", ""),
    "stunet_huge_totalsegmentator": ("stunet_huge", "state_dict", "module."),
    "suprem_swinunetr": ("suprem_pretrain", "net", "module."),
    "dae_pretrain": ("dae_pretrain", "model", ""),
    "pumit_b_pretrain": ("pumit_vit_pretrain", "state_dict", ""),
    "misfm_pctnet_ct10k": ("misfm_pctnet", "model_state_dict", "module."),
    "swinmm_pretrained": ("swinmm_pretrain", "state_dict", "module."),
    "swinmm_word": ("swinmm", "state_dict", "module."),
    "dinov2_vits14_pretrain": ("dinov2_vits14", None, ""),
    "dinov2_vitg14_pretrain": ("dinov2_vitg14", None, ""),
}


@pytest.mark.parametrize("name", OFFICIAL_FILES)
def test_the_cards_account_for_every_tensor_of_the_official_files(name: str, tmp_path: Path) -> None:
    """By the network that the card builds, on the meta device; and no file passes for another model's."""
    manifest, container, prefix = OFFICIAL_FILES[name]
    file = manifest_file(tmp_path / "official.pth", manifest, container, prefix)
    assert file.stat().st_size < 2e6
    wanted = get_official(name)
    (section,) = check(wanted, file).sections
    total = len(json.loads((MANIFESTS / f"{manifest}.json").read_text())["state_dict"])
    assert len(section.matched) + len(section.adapted) > 0.5 * total
    assert [o.checkpoint.name for o in recognise(file, officials()) if o.card.family != wanted.card.family] == []


DINOV2_DROP = ["^mask_token$"]


def segmenter(channels: int = 1) -> nn.Module:
    from nnunet_fm.networks.segmenter2d import FoundationSegmenter2D

    return FoundationSegmenter2D(channels, 5, backbone="dinov2_s", image_size=224)


@pytest.mark.parametrize("channels", [1, 4])
def test_dinov2_into_the_backbone_of_a_segmenter(tmp_path: Path, channels: int) -> None:
    file = official("dinov2_vits14")
    torch.save(file, tmp_path / "dinov2_vits14_pretrain.pth")
    network = segmenter(channels)
    before = {n: t.clone() for n, t in network.state_dict().items()}
    (section,) = load_checkpoint(network, tmp_path / "dinov2_vits14_pretrain.pth", drop=DINOV2_DROP).sections
    assert len(section.matched) == 175 - 2
    assert section.adapted == {"vit.pos_embed": "converted from [1, 1370, 384] to [1, 257, 384]"}
    assert list(section.dropped) == ["mask_token"]
    assert not section.missing
    own = network.state_dict()
    for name in section.matched:
        assert torch.equal(own[f"backbone.{name}"], file[name.removeprefix("vit.")])
    assert all(torch.equal(own[n], before[n]) for n in own if not n.startswith("backbone."))


def test_dinov2_file_of_another_size_or_with_a_stranger() -> None:
    wide = {n: t.repeat(*[2 if s == 384 else 1 for s in t.shape]) for n, t in official("dinov2_vits14").items()}
    with pytest.raises(WeightsMismatchError, match="another size of the model"):
        load_official(segmenter(), wide, drop=DINOV2_DROP)
    with pytest.raises(WeightsMismatchError, match=r"only in the file: vit\.dino_head"):
        load_official(segmenter(), official("dinov2_vits14") | {"dino_head": torch.ones(1)}, drop=DINOV2_DROP)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_loading_needs_no_second_copy_in_memory(tmp_path: Path) -> None:
    """A file of 160 MB, read and loaded, takes up less than its size beyond the network's own memory."""
    program = f"""
import gc, torch
from pathlib import Path
from torch import nn
from nnunet_fm.weights.load import load_checkpoint
def anonymous(): return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("RssAnon")) / 1024
network = nn.Sequential(*(nn.Linear(1000, 1000, bias=False) for _ in range(40)))
torch.save(network.state_dict(), "{tmp_path}/a.pth")
gc.collect()
before, peak = anonymous(), 0
copy = torch.Tensor.copy_
def spy(self, *args):
    global peak
    out = copy(self, *args)
    peak = max(peak, anonymous())
    return out
torch.Tensor.copy_ = spy
load_checkpoint(network, Path("{tmp_path}/a.pth"))
print(peak - before)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 40
