"""Slim checkpoints: what is left out, how it comes back, through every way nnU-Net handles checkpoints."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.model_sharing.model_export import export_pretrained_model
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.run.run_training import maybe_load_checkpoint
from torch import Tensor, nn

from nnunet_fm.plans.planner import Options, planner_class
from nnunet_fm.weights import cache, slim
from nnunet_fm.weights.bundle import bundle
from nnunet_fm.weights.load import load_checkpoint
from nnunet_fm.weights.slim import NOTE, bases_of, expand_slim, full_state_dict, slim_state_dict
from tests.helpers import trainings
from tests.helpers.datasets import training_folders, write_dataset, write_fingerprint
from tests.helpers.errors import fails
from tests.helpers.slim_files import ENTRY_OF_PLAN, FILE, build, pretrained, same, write_base

ENCODER = "conv_blocks_context."
Form = Callable[[dict[str, Tensor]], dict[str, Tensor]]


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return write_base(tmp_path, monkeypatch)


def trained(network: nn.Module, seed: int = 5) -> dict[str, Tensor]:
    """Move every trained parameter; returns a copy of the full state dict."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def through_file(content: Any, path: Path) -> Any:
    torch.save(content, path)
    return torch.load(path, weights_only=True)


def left_out(state_dict: dict[str, Tensor]) -> set[str]:
    return {name for entry in bases_of(state_dict) for name in entry.tensors}


def of_older_version(content: dict[str, Tensor]) -> dict[str, Tensor]:
    """A slim state dict in the form of older versions: the note stood in the storage of every stand-in."""
    bases = bases_of(content)
    note = b"nnunet-fm slim checkpoint 1\n" + json.dumps([asdict(base) for base in bases]).encode()

    def stand_in(dtype: torch.dtype) -> Tensor:
        first = torch.full((1,), float("nan") if dtype.is_floating_point else 0).to(dtype)
        start = bytes(first.view(torch.uint8).tolist()).ljust(16, b"\0")
        content = bytearray(start + note + b" " * (-len(note) % 16))
        return torch.frombuffer(content, dtype=torch.uint8).clone().view(dtype)

    names = left_out(content)
    older = {n: stand_in(t.dtype).as_strided(t.shape, [0] * t.ndim) if n in names else t for n, t in content.items()}
    return {**older, NOTE: stand_in(torch.uint8)}


def test_only_what_is_frozen_and_the_files_is_left_out(base: Path, tmp_path: Path) -> None:
    network = pretrained(base)
    expected = trained(network)
    content = slim_state_dict(network)
    assert left_out(content) == {n for n in expected if n.startswith(ENCODER)}
    assert content.keys() == {*expected, NOTE}
    assert all(t.shape == expected[n].shape and t.dtype == expected[n].dtype for n, t in content.items() if n != NOTE)
    torch.save(expected, tmp_path / "full.pth")
    loaded = through_file(content, tmp_path / "slim.pth")
    trained_share = sum(t.numel() for n, t in expected.items() if not n.startswith(ENCODER)) * 4
    assert trained_share < (tmp_path / "slim.pth").stat().st_size < trained_share + 200_000
    other = build(seed=9)
    other.load_state_dict(loaded)
    assert same(other.state_dict(), expected)


def test_adapted_tensors_are_written(base: Path) -> None:
    """Three input channels: the first convolutions are not those of the file."""
    network = pretrained(base, channels=3)
    content = slim_state_dict(network)
    stem = {f"{ENCODER}0.0.{conv}.weight" for conv in ("conv1", "conv3")}
    assert left_out(content) == {n for n in network.state_dict() if n.startswith(ENCODER)} - stem


def test_a_frozen_tensor_that_changed_is_written(base: Path) -> None:
    network = pretrained(base)
    changed = f"{ENCODER}3.0.conv1.weight"
    with torch.no_grad():
        network.get_parameter(changed)[0, 0, 0, 0, 0] += 1e-3
    content = slim_state_dict(network)
    assert changed not in left_out(content) and f"{ENCODER}3.0.conv2.weight" in left_out(content)
    assert torch.equal(content[changed], network.state_dict()[changed])


def test_negative_zero_is_no_zero(base: Path) -> None:
    """Equal numbers of other bytes are other tensors."""
    network = pretrained(base)
    official = torch.load(base)
    name = f"{ENCODER}0.0.norm1.bias"
    assert not official["state_dict"][name].any()
    with torch.no_grad():
        network.get_parameter(name).mul_(-1)
    assert name not in left_out(slim_state_dict(network))


@pytest.mark.parametrize("adapter", ["full", "scratch"])
def test_full_checkpoints_stay_full(base: Path, adapter: str) -> None:
    network = pretrained(base, "full") if adapter == "full" else build("freeze")
    content = slim_state_dict(network)
    assert not bases_of(content) and same(content, network.state_dict())


def test_a_file_of_another_precision_is_not_left_out(base: Path) -> None:
    content = torch.load(base)
    torch.save({"state_dict": {n: t.half() for n, t in content["state_dict"].items()}}, base)
    assert not bases_of(slim_state_dict(pretrained(base)))


def test_lora_leaves_out_the_layers_that_it_wraps(base: Path) -> None:
    network = pretrained(base, "lora")
    expected = trained(network)
    content = slim_state_dict(network)
    names = left_out(content)
    assert any(".base_layer." in n for n in names) and not any(".lora_" in n for n in names)
    other = build("lora", seed=9)
    other.load_state_dict(content)
    assert same(other.state_dict(), expected)


def test_buffers_of_frozen_modules_are_left_out(base: Path) -> None:
    class WithBuffers(nn.Module):
        frozen = ("norm",)

        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3).requires_grad_(False)
            self.free = nn.BatchNorm2d(3)
            self.register_buffer("step", torch.tensor(2.0, dtype=torch.bfloat16))

    torch.save(WithBuffers().state_dict(), base)
    network = WithBuffers()
    slim.register(network)
    load_checkpoint(network, base)
    expected = {n: t.clone() for n, t in network.state_dict().items()}
    content = through_file(slim_state_dict(network), base.with_name("a.pth"))
    scalar = "norm.num_batches_tracked"  # a single number takes less room than its name
    assert left_out(content) == {n for n in expected if n.startswith("norm.")} - {scalar}
    network.norm.reset_running_stats()
    network.norm.num_batches_tracked.fill_(7)
    network.load_state_dict(content)
    assert same(network.state_dict(), expected)


def test_folds_are_swapped_without_reading_again(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = pretrained(base)
    first, folds, full = slim._read.cache_info().misses, [], []
    for seed in (1, 2, 3):
        full.append(trained(network, seed))
        folds.append(through_file(slim_state_dict(network), tmp_path / "fold.pth"))
    assert slim._read.cache_info().misses == first + 1
    monkeypatch.setattr(slim, "read_state_dict", lambda *a: pytest.fail("read again"))
    monkeypatch.setattr(cache, "compute_sha256", lambda *a: pytest.fail("hashed again"))
    predictor = build(seed=9)
    for fold, expected in (*zip(folds, full, strict=True), (folds[0], full[0])):
        predictor.load_state_dict(fold)
        assert same(predictor.state_dict(), expected)


def test_a_continued_training_stays_slim(base: Path) -> None:
    first = pretrained(base)
    second = build(seed=9)
    second.load_state_dict(slim_state_dict(first))
    expected = trained(second)
    content = slim_state_dict(second)
    assert left_out(content) == left_out(slim_state_dict(first))
    third = build(seed=8)
    third.load_state_dict(content)
    assert same(third.state_dict(), expected)


def test_full_weights_in_a_network_that_knew_the_file(base: Path) -> None:
    """Whatever is loaded later, only what is the file's is left out."""
    network = pretrained(base)
    network.load_state_dict(build(seed=4).state_dict())
    constant = ("bias", "norm1.weight", "norm2.weight")  # the same in every fresh network
    assert all(name.endswith(constant) for name in left_out(slim_state_dict(network)))


@pytest.mark.parametrize("wrapper", ["compile", "parallel", "container"])
def test_wrappers(base: Path, wrapper: str) -> None:
    network = pretrained(base)
    expected = trained(network)
    content = slim_state_dict(network)
    other = build(seed=9)
    if wrapper == "compile":
        wrapped, prefix = torch.compile(other), "_orig_mod."
    elif wrapper == "parallel":
        wrapped, prefix = nn.DataParallel(other), "module."
    else:
        wrapped, prefix = nn.ModuleDict({"student": other}), "student."
    wrapped.load_state_dict({f"{prefix}{n}": t for n, t in content.items()})
    assert same(other.state_dict(), expected)


def test_networks_are_copied_and_pickled(base: Path) -> None:
    network = pretrained(base)
    content, expected = slim_state_dict(network), network.state_dict()
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert left_out(slim_state_dict(other)) == left_out(content)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        other.load_state_dict(content)
        assert same(other.state_dict(), expected)


def test_the_meta_device_is_refused_not_left_empty(base: Path) -> None:
    network = pretrained(base)
    content = slim_state_dict(network)
    with torch.device("meta"):
        empty = build()
    with pytest.raises(RuntimeError, match="meta device"):
        empty.load_state_dict(content)
    with pytest.raises(ValueError, match="meta device"):
        slim_state_dict(empty)
    empty.load_state_dict(content, assign=True)
    assert same(empty.state_dict(), network.state_dict())


def test_another_kind_of_network_refuses_a_slim_checkpoint(base: Path) -> None:
    """A network without the hook must not take the stand-ins for weights."""
    from nnunet_fm.networks.stunet import STUNet

    foreign = STUNet(1, 3, **ENTRY_OF_PLAN["arch_kwargs"])  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=NOTE):
        foreign.load_state_dict(slim_state_dict(pretrained(base)))


@pytest.mark.parametrize("target", ["freeze", "full"])
def test_stock_transfer_takes_full_weights(base: Path, tmp_path: Path, target: str) -> None:
    """nnU-Net checks names and shapes against the network's own before it loads."""
    network = pretrained(base)
    expected = trained(network)
    torch.save({"network_weights": expected}, tmp_path / "checkpoint_final.pth")
    other = pretrained(base, target) if target == "freeze" else build("full")
    load_pretrained_weights(other, str(tmp_path / "checkpoint_final.pth"))
    assert same(other.state_dict(), expected)


@pytest.mark.parametrize("form", [dict, of_older_version])
def test_stock_transfer_refuses_slim_weights(base: Path, tmp_path: Path, form: Form) -> None:
    """It leaves the note behind, and nothing must be taken for a weight that is none."""
    torch.save({"network_weights": form(slim_state_dict(pretrained(base)))}, tmp_path / "checkpoint_final.pth")
    other = build()
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with fails("checkpoint-note", ENCODER, "conv1.weight", NOTE, "FOLDER"):
        load_pretrained_weights(other, str(tmp_path / "checkpoint_final.pth"))
    assert same(other.state_dict(), before)


@pytest.mark.parametrize("form", [dict, of_older_version])
def test_a_slim_file_is_expanded(base: Path, tmp_path: Path, form: Form) -> None:
    network = pretrained(base)
    expected = trained(network)
    file = tmp_path / "checkpoint_final.pth"
    torch.save({"network_weights": form(slim_state_dict(network)), "current_epoch": 7}, file)
    content, bases = expand_slim(file)
    assert content["current_epoch"] == 7 and same(content["network_weights"], expected)
    assert [entry.files for entry in bases] == [(FILE, "other.model")]
    network.load_state_dict(torch.load(file, weights_only=True)["network_weights"])
    assert same(network.state_dict(), expected)
    torch.save(content, tmp_path / "full.pth")
    assert expand_slim(tmp_path / "full.pth")[1] == ()


def test_a_missing_base_says_what_to_do(base: Path) -> None:
    content = slim_state_dict(pretrained(base))
    base.unlink()
    with fails("base-file-missing") as error:
        build().load_state_dict(content)
    for part in (FILE, str(base.parent), "a page", "nnunet-fm weights bundle FOLDER"):
        assert part in str(error.value)


def test_another_base_names_both_hashes(base: Path) -> None:
    content = slim_state_dict(pretrained(base))
    before = cache.sha256(base)
    torch.save({"state_dict": build("full", seed=7).state_dict()}, base)
    with fails("base-file-changed") as error:
        build().load_state_dict(content)
    assert before in str(error.value) and cache.sha256(base) in str(error.value)


def test_the_base_is_found_under_its_other_name(base: Path) -> None:
    network = pretrained(base)
    content = slim_state_dict(network)
    base.rename(base.with_name("other.model"))
    other = build(seed=9)
    other.load_state_dict(content)
    assert same(other.state_dict(), network.state_dict())


def test_tensors_are_verified_beside_the_file(base: Path) -> None:
    content = slim_state_dict(pretrained(base))
    (entry,) = bases_of(content)
    names = dict(entry.tensors)
    first, second = (f"{ENCODER}1.0.conv{i}.weight" for i in (1, 2))
    names[first], names[second] = names[second], names[first]
    with fails("base-file-changed"):
        slim._tensors(slim.replace(entry, tensors=names))


def test_a_checkpoint_is_full_when_the_base_is_gone(base: Path) -> None:
    network = pretrained(base)
    base.unlink()
    with pytest.warns(UserWarning, match=FILE):
        content = slim_state_dict(network)
    assert same(content, network.state_dict())


def test_full_state_dict_needs_no_network(base: Path, tmp_path: Path) -> None:
    network = pretrained(base)
    expected = trained(network)
    content = through_file(slim_state_dict(network), tmp_path / "slim.pth")
    assert same(full_state_dict(content), expected)
    assert same(full_state_dict(expected), expected)


NUMBER, PLANS, SHAPE = 655, "FMPlans_tiny", (18, 20, 22)
TRAINER = "fm_trainer_freeze"


def make_trainer(plans: dict[str, Any], fold: int) -> Any:
    return trainings.make_trainer(plans, TRAINER, fold)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Any], Path]]:
    """Plans of a small network, and the folder of two folds trained with a frozen encoder."""
    root = tmp_path_factory.mktemp("nnunet")
    with training_folders(root) as variables, pytest.MonkeyPatch.context() as patch:
        patch.setenv(cache.CACHE_VARIABLE, str(root / "weights"))
        (root / "weights").mkdir()
        torch.save({"state_dict": build("full", seed=1).state_dict()}, root / "weights" / "small_ep4k.model")
        folder = write_dataset(variables["nnUNet_raw"], NUMBER, shape=SHAPE)
        write_fingerprint(folder, [SHAPE] * 6, [(1.0, 1.0, 1.0)] * 6)
        recipe = {"iterations_per_epoch": 2, "validation_iterations": 1, "save_every": 1, "augmentation": "nnunet"}
        options = Options(iterations=2, recipe=recipe, force=True)
        plans = planner_class("FMPlanner_stunet_s")(NUMBER, 40, plans_name=PLANS, options=options).plan_experiment()
        architecture = plans["configurations"]["3d_fullres"]["architecture"]
        architecture["arch_kwargs"] |= {"dims": ENTRY_OF_PLAN["arch_kwargs"]["dims"]}
        (Path(variables["nnUNet_preprocessed"]) / folder.name / f"{PLANS}.json").write_text(json.dumps(plans))
        preprocess_dataset(NUMBER, PLANS, ["3d_fullres"], [1], show_progress_bar=False)
        for fold in (0, 1):
            trainer = make_trainer(plans, fold)
            trainer.run_training()
            trainer.perform_actual_validation(save_probabilities=False)
            Path(trainer.output_folder, "progress.png").touch()  # is not drawn here, and nnU-Net's export asks for it
        yield plans, Path(trainer.output_folder_base)


def predict(model: Path, folds: tuple[int, ...] = (0, 1)) -> np.ndarray:
    """Class probabilities that nnU-Net's own predictor gives for the test case, over the folds."""
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), use_folds=folds)
    images = sorted(Path(os.environ["nnUNet_raw"]).glob("*/imagesTs/*.nii.gz"))
    ((_, probabilities),) = predictor.predict_from_files_sequential([[str(i) for i in images]], None, True)
    return np.asarray(probabilities)


def network_weights(file: Path) -> dict[str, Tensor]:
    content: dict[str, dict[str, Tensor]] = torch.load(file, weights_only=False)
    return content["network_weights"]


def test_training_writes_slim_checkpoints(study: tuple[dict[str, Any], Path]) -> None:
    _, model = study
    for file in (model / "fold_0" / "checkpoint_final.pth", model / "fold_1" / "checkpoint_best.pth"):
        names = left_out(network_weights(file))
        assert names == {n for n in build().state_dict() if n.startswith(ENCODER)}


def test_prediction_over_folds_equals_that_of_full_checkpoints(
    study: tuple[dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, model = study
    full = tmp_path / model.name
    shutil.copytree(model, full)
    assert all(done.bases for done in bundle(full))
    expected = predict(model)
    older = tmp_path / "older"
    shutil.copytree(model, older)
    for file in older.glob("fold_*/checkpoint_final.pth"):
        content = torch.load(file, weights_only=False)
        torch.save({**content, "network_weights": of_older_version(content["network_weights"])}, file)
    assert np.array_equal(predict(older), expected)
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "empty"))
    assert np.array_equal(predict(full), expected)
    with fails("base-file-missing", "small_ep4k.model"):
        predict(model)


def test_continuing_and_validating(study: tuple[dict[str, Any], Path]) -> None:
    """What ``--c`` and ``--val`` do."""
    plans, model = study
    expected = full_state_dict(network_weights(model / "fold_0" / "checkpoint_final.pth"))
    for continued in (True, False):
        trainer = make_trainer(plans, 0)
        maybe_load_checkpoint(trainer, continued, not continued)
        assert same(trainer.network.state_dict(), expected)
    trainer.perform_actual_validation(save_probabilities=False)
    trainer.save_checkpoint(str(model / "fold_0" / "checkpoint_latest.pth"))
    again = network_weights(model / "fold_0" / "checkpoint_latest.pth")
    assert left_out(again) and same(full_state_dict(again), expected)


def test_pretrained_weights_of_a_slim_checkpoint(study: tuple[dict[str, Any], Path]) -> None:
    plans, model = study
    trainer = make_trainer(plans, 2)
    file = model / "fold_0" / "checkpoint_final.pth"
    maybe_load_checkpoint(trainer, False, False, str(file))
    assert same(trainer.network.state_dict(), full_state_dict(network_weights(file)))


def test_the_stock_zip_of_a_slim_folder_is_slim(
    study: tuple[dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans, model = study
    export_pretrained_model(plans["dataset_name"], str(tmp_path / "a.zip"), ("3d_fullres",), TRAINER, PLANS, (0, 1))
    expected = predict(model)
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        archive.extractall(tmp_path / "elsewhere")
    (installed,) = (tmp_path / "elsewhere").glob(f"*/{model.name}")
    original, copied = (folder / "fold_0" / "checkpoint_final.pth" for folder in (model, installed))
    assert copied.read_bytes() == original.read_bytes()
    assert np.array_equal(predict(installed), expected)


def test_the_plan_pins_the_official_file(study: tuple[dict[str, Any], Path]) -> None:
    plans, _ = study
    entry = plans["nnunet_fm"]["weights"]["backbone"]
    assert entry["name"] == "stunet_small_totalsegmentator" and len(entry["sha256"]) == 64
    changed = copy.deepcopy(plans)
    changed["nnunet_fm"]["weights"]["backbone"]["sha256"] = "0" * 64
    trainer = make_trainer(changed, 3)
    with fails("weights-changed", entry["sha256"], "0" * 64):
        trainer.initialize()
    changed["nnunet_fm"]["weights"]["backbone"]["name"] = "stunet_tiny"
    with fails("weights-unknown", "stunet_small_totalsegmentator"):
        make_trainer(changed, 3)
