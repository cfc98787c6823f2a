"""fm_trainer_selftraining and fm_trainer_entropymin on hippocampus MRI, the target being its contrast inverted."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

import nnunet_fm.trainers
from nnunet_fm.adaptation.pseudo_labels import predict
from nnunet_fm.dataset_conversion.demo import unpack
from nnunet_fm.losses.adaptation import NOT_COUNTED
from nnunet_fm.plans.adapt import AdaptOptions, plan_adaptation
from nnunet_fm.plans.planner import Options, planner_class
from nnunet_fm.preprocessing.preprocessor import FMPreprocessor
from nnunet_fm.weights.slim import bases_of
from tests.helpers.datasets import nnunet_folders, write_dataset, write_fingerprint
from tests.helpers.errors import fails
from tests.helpers.official_files import write_official

CPU = torch.device("cpu")
SOURCE, TARGET = 904, 905
CASES = 6
TINY = {"iterations_per_epoch": 2, "validation_iterations": 1, "volume_dice_every": 0}
PLANS_2D: dict[str, Any] = {"patch": [64, 48], "batch": 2, "network": {"image_size": 56}}
PLANS_3D: dict[str, Any] = {
    "patch": [16, 32, 16],
    "batch": 2,
    "spacing": [2, 1.5, 2],
    "network": {"dims": [4, 4, 8, 8, 8, 8], "depth": [1] * 6},
}
PLANNERS = {
    "linear": ("FMPlanner_dinov2_s_linear_freeze", "fm_trainer", PLANS_2D),
    "hsam": ("FMPlanner_dinov2_s_hsam_rein", "fm_trainer_rein_scratch", PLANS_2D),
    "stunet": ("FMPlanner_stunet_s", "fm_trainer_scratch", PLANS_3D),
}
ENCODERS = {"linear": "backbone.", "hsam": ("backbone.", "rein."), "stunet": "conv_blocks_context."}


@pytest.fixture(scope="module", autouse=True)
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """nnU-Net's folders with both datasets, and a weights folder with a file of the official DINOv2's shapes."""
    root = tmp_path_factory.mktemp("adapt")
    _sources.clear()  # of folders that are gone: tests of other files may have come between those of this one
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        raw = Path(nnunet_folders(root, patch)["nnUNet_raw"])
        patch.setenv("NNUNET_FM_WEIGHTS", str(root / "weights"))
        patch.setenv("nnUNet_n_proc_DA", "0")
        write_official("dinov2_s", root / "weights")
        source = unpack(raw, SOURCE)
        for label in sorted((source / "labelsTr").iterdir())[CASES:]:
            label.unlink()
            (source / "imagesTr" / label.name.replace(".nii.gz", "_0000.nii.gz")).unlink()
        about = json.loads((source / "dataset.json").read_text())
        (source / "dataset.json").write_text(json.dumps(about | {"numTraining": CASES}))
        target = raw / f"Dataset{TARGET}_Inverted"
        shutil.copytree(source, target)
        for file in target.glob("imagesT*/*"):
            invert(file)
        for folder in (source, target):
            images = [sitk.ReadImage(str(file)) for file in sorted((folder / "imagesTr").iterdir())]
            write_fingerprint(folder, [i.GetSize()[::-1] for i in images], [i.GetSpacing()[::-1] for i in images])
        yield root
    torch.set_num_threads(threads)
    shutil.rmtree(root)


def invert(file: Path) -> None:
    image = sitk.ReadImage(str(file))
    array = sitk.GetArrayFromImage(image).astype(np.float32)
    inverted = sitk.GetImageFromArray(array.max() - array)
    inverted.CopyInformation(image)
    sitk.WriteImage(inverted, str(file))


def preprocess(plans: dict[str, Any]) -> None:
    """What nnU-Net's command does, in this process; data that are there already are left."""
    manager = PlansManager(json.loads(json.dumps(plans)))
    (name,) = plans["configurations"]
    configuration = manager.get_configuration(name)
    raw = Path(os.environ["nnUNet_raw"], plans["dataset_name"])
    out = Path(os.environ["nnUNet_preprocessed"], plans["dataset_name"], configuration.data_identifier)
    if out.is_dir():
        return
    out.mkdir()
    dataset_json = json.loads((raw / "dataset.json").read_text())
    for label in sorted((raw / "labelsTr").iterdir()):
        case = label.name.removesuffix(".nii.gz")
        images = [str(raw / "imagesTr" / f"{case}_0000.nii.gz")]
        FMPreprocessor(verbose=False).run_case_save(
            str(out / case), images, str(label), manager, configuration, dataset_json
        )


def make(plans: dict[str, Any], name: str, fold: int = 0) -> Any:
    """A trainer as the stock command builds it."""
    folder = Path(os.environ["nnUNet_preprocessed"], plans["dataset_name"])
    dataset_json = json.loads((folder / "dataset.json").read_text())
    (configuration,) = plans["configurations"]
    plans = json.loads(json.dumps(plans)) | {"continue_training": False}
    return getattr(nnunet_fm.trainers, name)(plans, configuration, fold, dataset_json, CPU)


_sources: dict[str, Path] = {}


def source(kind: str) -> Path:
    """The folder of a model trained for two iterations, once for all tests."""
    if kind not in _sources:
        planner, trainer, options = PLANNERS[kind]
        made = Options(iterations=2, recipe={**TINY, "sampling": "nnunet"}, **options)
        plans = planner_class(planner)(SOURCE, 40, options=made).plan_experiment()
        preprocess(plans)
        trained = make(plans, trainer)
        trained.run_training()
        _sources[kind] = Path(trained.output_folder_base)
    return _sources[kind]


def adapted(kind: str, method: Any = "selftraining", **options: Any) -> Any:
    """A trainer for the target."""
    recipe = {**TINY, **options.pop("recipe", {})}
    given = AdaptOptions(method, **{"iterations": 4, "force": True, "recipe": recipe, **options})
    plans = plan_adaptation(source(kind), TARGET, given).plans
    preprocess(plans)
    return make(plans, f"fm_trainer_{method}")


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.bare_network.state_dict().items()}


def moved(trainer: Any, before: dict[str, torch.Tensor]) -> set[str]:
    after = trainer.bare_network.state_dict()
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def log(trainer: Any) -> str:
    return Path(trainer.log_file).read_text()


# What is trained


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("linear", "selftraining"),
        ("linear", "entropymin"),
        ("stunet", "selftraining"),
        pytest.param("stunet", "entropymin", marks=pytest.mark.slow),
        pytest.param("hsam", "selftraining", marks=pytest.mark.slow),
        pytest.param("hsam", "entropymin", marks=pytest.mark.slow),
    ],
)
def test_the_head_alone_moves_away_from_the_source(kind: str, method: str) -> None:
    trainer = adapted(kind, method, confidence=0.0)
    trainer.initialize()
    start = weights(trainer)
    checkpoint = torch.load(source(kind) / "fold_0" / "checkpoint_best.pth", weights_only=False)["network_weights"]
    if not bases_of(checkpoint):  # in a slim checkpoint the frozen tensors stand for those of the official file
        assert all(torch.equal(tensor, checkpoint[name]) for name, tensor in start.items())
    loader, _ = trainer.get_dataloaders()
    trainer.network.train()
    trainer.iteration = 1  # the rate is zero before the first
    losses = [float(trainer.train_step(next(loader))["loss"]) for _ in range(2)]
    changed = moved(trainer, start)
    assert np.isfinite(losses).all() and changed
    assert not any(name.startswith(ENCODERS[kind]) for name in changed)
    decoders = {"head", "conv_blocks_localization", "upsample_layers", "seg_outputs"}
    assert {name.split(".")[0] for name in changed} <= decoders
    statistics = [name for name in start if name.startswith("head") and name.endswith("running_mean")]
    assert set(statistics) <= changed


def test_a_slim_model_is_adapted_kept_slim_and_predicts_without_its_source(folders: Path) -> None:
    trainer = adapted("linear", iterations=2)
    trainer.run_training()
    final = Path(trainer.output_folder, "checkpoint_final.pth")
    assert bases_of(torch.load(final, weights_only=False)["network_weights"]) and final.stat().st_size < 2**21
    hidden = source("linear").rename(source("linear").with_name("moved"))
    try:
        predictor = nnUNetPredictor(device=CPU, allow_tqdm=False, use_mirroring=False)
        predictor.initialize_from_trained_model_folder(trainer.output_folder_base, use_folds=(0,))
        assert all(
            torch.equal(tensor, trainer.bare_network.state_dict()[name])
            for name, tensor in predictor.network.state_dict().items()
        )
        again = make(trainer.plans_manager.plans, "fm_trainer_selftraining")
        again.load_checkpoint(str(final))
        assert again.iteration == 2 and not moved(again, weights(trainer))
        with fails("source-missing", "--source"):
            make(trainer.plans_manager.plans, "fm_trainer_selftraining").initialize()
    finally:
        hidden.rename(source("linear"))


def test_a_source_that_has_changed_is_refused() -> None:
    trainer = adapted("linear")
    file = source("linear") / "fold_0" / "checkpoint_best.pth"
    content = file.read_bytes()
    try:
        file.write_bytes(content + b"\0")
        with fails("source-changed"):
            trainer.initialize()
    finally:
        file.write_bytes(content)


def test_only_norms_of_the_head_in_the_published_entropy_minimisation() -> None:
    trainer = adapted("linear", "entropymin", faithful=True)
    trainer.initialize()
    trained = {name for name, p in trainer.bare_network.named_parameters() if p.requires_grad}
    assert trained == {"head.batch_norm.weight", "head.batch_norm.bias"}


# Which labels are seen


def test_labels_that_may_not_be_seen_change_nothing(folders: Path) -> None:
    """Losses and weights are the same to the last bit with other labels in all cases whose labels are hidden."""

    def run() -> tuple[list[float], dict[str, torch.Tensor]]:
        trainer = adapted("linear", labelled=1, confidence=0.0)
        trainer.initialize()
        loader, _ = trainer.get_dataloaders()
        trainer.network.train()
        torch.manual_seed(1)
        np.random.seed(1)
        trainer.iteration = 1
        return [float(trainer.train_step(next(loader))["loss"]) for _ in range(3)], weights(trainer)

    losses, after = run()
    trainer = adapted("linear", labelled=1)
    training, _ = trainer.do_split()
    (seen,) = trainer.labelled_cases(training)
    data = Path(trainer.preprocessed_dataset_folder)
    kept = data.with_name("kept")
    labels = folders / "nnUNet_raw" / f"Dataset{TARGET}_Inverted" / "labelsTr"
    shutil.copytree(labels, folders / "labels")
    data.rename(kept)
    try:
        for case in set(training) - {seen}:
            file = labels / f"{case}.nii.gz"
            image = sitk.ReadImage(str(file))
            array = sitk.GetArrayFromImage(image)
            other = sitk.GetImageFromArray(((array == 0) * 2).astype(array.dtype))
            other.CopyInformation(image)
            sitk.WriteImage(other, str(file))
        losses_without, after_without = run()
    finally:
        shutil.rmtree(data)
        kept.rename(data)
        shutil.rmtree(labels)
        (folders / "labels").rename(labels)
    assert losses == losses_without and np.isfinite(losses).all()
    assert all(torch.equal(tensor, after_without[name]) for name, tensor in after.items())


def test_labelled_cases_are_training_cases() -> None:
    trainer = adapted("linear", labelled=2)
    training, validation = trainer.do_split()
    chosen = trainer.labelled_cases(training)
    assert len(chosen) == 2 and set(chosen) <= set(training)
    other = adapted("linear", labelled=2, seed=1)
    assert other.labelled_cases(training) != chosen == adapted("linear", labelled=2).labelled_cases(training)
    assert set(adapted("linear", labelled=99).labelled_cases(training)) == set(training)
    named = adapted("linear", labelled_cases=[validation[0]])
    with fails("case-unknown", validation[0], "0"):
        named.labelled_cases(training)
    assert adapted("linear", faithful=True).labelled_cases(training) == sorted(training)[:3]


def test_a_batch_mixes_labels_and_pixels_without() -> None:
    trainer = adapted("linear", labelled=2)
    trainer.initialize()
    loader, validation = trainer.get_dataloaders()
    kinds = set()
    for _ in range(12):
        batch = next(loader)
        assert batch["data"].shape[1:] == (2, 64, 48)  # two views of one channel
        for case, target in zip(batch["keys"], batch["target"], strict=True):
            hidden = bool((target >= trainer.marker).all())  # the marker, and that of padding
            assert hidden or set(target.unique().tolist()) <= {0, 1, 2}
            assert hidden != (case in trainer.labelled_cases(trainer.do_split()[0]))
            kinds.add(hidden)
    assert kinds == {True, False}
    assert next(validation)["data"].shape[1:] == (1, 64, 48)


# Self-training


def batch_of(trainer: Any, target: int, views: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise without labels (``target`` is the marker), or with one label everywhere."""
    generator = torch.Generator().manual_seed(0)
    data = torch.rand(2, views, 32, 32, generator=generator)
    return data, torch.full((2, 1, 32, 32), target, dtype=torch.int16)


def test_pseudo_labels_are_those_of_the_weak_view(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = adapted("linear")
    trainer.initialize()
    trainer.network.train()
    data, target = batch_of(trainer, trainer.marker)
    seen: dict[str, torch.Tensor] = {}
    forward = trainer.bare_network.forward_logits

    def watch_images(x: torch.Tensor) -> Any:
        seen["trained on" if trainer.bare_network.training else "predicted"] = x
        return forward(x)

    def watch_loss(outputs: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        seen["pool"] = pooled
        return outputs.sum()

    expected = predict(trainer.bare_network, data[:, :1]).softmax(1)
    threshold = trainer.adaptation.confidence = float(expected.amax(1).median())
    monkeypatch.setattr(trainer.bare_network, "forward_logits", watch_images)
    trainer.adaptation_loss.forward = watch_loss
    trainer.batch_loss(data, target)
    assert torch.equal(seen["predicted"], data[:, :1]) and torch.equal(seen["trained on"], data[:, 1:])
    sure = expected.amax(1, keepdim=True) >= threshold
    assert torch.equal(seen["pool"], expected.argmax(1, keepdim=True).where(sure, NOT_COUNTED))
    assert sure.any() and not sure.all()


def test_a_batch_without_anything_to_learn_is_left_out() -> None:
    trainer = adapted("linear", confidence=0.9999)
    trainer.initialize()
    trainer.network.train()
    trainer.iteration = 1
    start = weights(trainer)
    data, target = batch_of(trainer, trainer.marker)
    assert np.isnan(trainer.train_step({"data": data, "target": target})["loss"])
    assert not moved(trainer, start) and trainer.iteration == 2
    data, labelled = batch_of(trainer, 1)
    assert np.isfinite(trainer.train_step({"data": data, "target": labelled})["loss"]) and moved(trainer, start)
    trainer.on_train_epoch_end([{"loss": np.array(np.nan)}, {"loss": np.array(0.5)}])
    assert "Confident share of pixels without label 0.0000, left out 1 of 2 batches" in log(trainer)
    assert trainer.logger.get_value("train_losses", step=-1) == 0.5


def test_a_teacher_follows_every_n_iterations_and_is_kept_in_checkpoints() -> None:
    trainer = adapted("linear", confidence=0.35, update_every=2, teacher_momentum=0.5)
    trainer.initialize()
    trainer.network.train()
    data, target = batch_of(trainer, 1)
    states = []
    for iteration in range(4):
        trainer.iteration = iteration
        trainer.train_step({"data": data, "target": target})
        states.append({n: t.clone() for n, t in trainer._teacher.state_dict().items()})
    name = "head.conv_seg.weight"
    assert torch.equal(states[0][name], states[1][name]) and torch.equal(states[2][name], states[3][name])
    assert not torch.equal(states[1][name], states[2][name])
    assert not any(n.startswith("backbone") and n.endswith("weight") for n in states[0])

    trainer.current_epoch = 0
    file = Path(trainer.output_folder, "checkpoint_latest.pth")
    trainer.save_checkpoint(str(file))
    again = make(trainer.plans_manager.plans, "fm_trainer_selftraining")
    again.load_checkpoint(str(file))
    again.iteration = 3  # no update now
    again._predictor()
    assert torch.equal(again._teacher.state_dict()[name], trainer._teacher.state_dict()[name])
    file.unlink()


@pytest.mark.parametrize("kind", ["linear", pytest.param("hsam", marks=pytest.mark.slow)])
def test_the_published_procedure_learns_from_its_own_pass(kind: str) -> None:
    trainer = adapted(kind, faithful=True, confidence=0.3)
    trainer.initialize()
    trainer.network.train()
    data, target = batch_of(trainer, trainer.marker, views=1)
    passes: list[Any] = []
    trainer.network.register_forward_hook(lambda module, x, out: passes.append(out))
    pools: list[torch.Tensor] = []
    loss = trainer.adaptation_loss.forward
    trainer.adaptation_loss.forward = lambda outputs, pool: (pools.append(pool), loss(outputs, pool))[1]
    value = trainer.batch_loss(data, target)
    (out,) = passes
    stages = [out] if kind == "linear" else out
    assert len(stages) == (1 if kind == "linear" else 2) and value.requires_grad
    mean = sum(stages) / len(stages)
    assert torch.equal(pools[0].clamp(min=0), mean.argmax(1, keepdim=True).where(pools[0] >= 0, 0))
    counted = pools[0][:, 0]
    parts = [torch.nn.functional.cross_entropy(stage, counted, ignore_index=NOT_COUNTED) for stage in stages]
    expected = parts[0] if kind == "linear" else 0.4 * parts[0] + 0.6 * parts[1]
    torch.testing.assert_close(value, expected)


# Labels of every kind

KINDS: dict[str, dict[str, Any]] = {
    "ignore": {"labels": {"background": 0, "one": 1, "ignore": 2}},
    "regions": {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]},
    "regions_ignore": {
        "labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3},
        "regions_class_order": [1, 2],
    },
}


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("regions_ignore", "selftraining"),
        pytest.param("regions_ignore", "entropymin", marks=pytest.mark.slow),
        pytest.param("regions", "selftraining", marks=pytest.mark.slow),
        pytest.param("ignore", "selftraining", marks=pytest.mark.slow),
    ],
)
def test_regions_and_ignored_voxels(kind: str, method: Any, folders: Path) -> None:
    """In 3D with deep supervision: channels of targets are regions, voxels without label, outside and ignored ones."""
    numbers = [910 + 2 * list(KINDS).index(kind) + i for i in range(2)]
    for number in numbers:
        if not list((folders / "nnUNet_raw").glob(f"Dataset{number}_*")):
            folder = write_dataset(folders / "nnUNet_raw", number, shape=(18, 20, 22), cases=CASES, **KINDS[kind])
            write_fingerprint(folder, [(18, 20, 22)] * CASES, [(1.0, 1.0, 1.0)] * CASES)
    made = Options(iterations=1, recipe=TINY, **PLANS_3D)
    plans = planner_class("FMPlanner_stunet_s")(numbers[0], 40, options=made).plan_experiment()
    preprocess(plans)
    trained = make(plans, "fm_trainer_scratch")
    trained.run_training()
    given = AdaptOptions(method, iterations=2, confidence=0.5, recipe=TINY)
    plans = plan_adaptation(Path(trained.output_folder_base), numbers[1], given).plans
    preprocess(plans)
    trainer = make(plans, f"fm_trainer_{method}")
    trainer.initialize()
    assert isinstance(trainer.network(torch.rand(1, 1, 16, 32, 16)), list)
    training, validation = trainer.get_dataloaders()
    trainer.network.train()
    trainer.iteration = 1
    for _ in range(3):
        assert np.isfinite(trainer.train_step(next(training))["loss"])
    with torch.no_grad():
        assert np.isfinite(trainer.validation_step(next(validation))["loss"])
    if method == "selftraining":
        batch = next(training)
        regions = 2 if kind.startswith("regions") else 0
        full = batch["target"][0] if isinstance(batch["target"], list) else batch["target"]
        assert full.shape[1] == (regions + 2 + kind.endswith("ignore") if regions else 1)


# Through nnU-Net's own loop


@pytest.mark.slow
def test_continuing_gives_the_losses_of_an_uninterrupted_adaptation() -> None:
    options = {"update_every": 2, "teacher_momentum": 0.5, "confidence": 0.35, "recipe": {"save_every": 1}}

    def losses(trainer: Any, until: int | None = None) -> list[float]:
        taken: list[float] = []
        step, end = trainer.train_step, trainer.on_epoch_end

        def train_step(batch: Any) -> Any:
            taken.append(float((output := step(batch))["loss"]))
            return output

        def on_epoch_end() -> None:
            end()
            if trainer.iteration == until:
                raise KeyboardInterrupt

        trainer.train_step, trainer.on_epoch_end = train_step, on_epoch_end
        try:
            trainer.run_training()
        except KeyboardInterrupt:
            assert until is not None
        return taken

    expected = losses(adapted("linear", iterations=6, **options))
    first = adapted("linear", iterations=6, **options)
    before = losses(first, until=2)
    second = make(first.plans_manager.plans, "fm_trainer_selftraining")
    second.load_checkpoint(str(Path(first.output_folder, "checkpoint_latest.pth")))
    assert len(expected) == 6 and np.array_equal(before + losses(second), expected, equal_nan=True)
    assert np.isfinite(expected).sum() > 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "method"),
    [("linear", "selftraining"), ("linear", "entropymin"), ("hsam", "selftraining"), ("stunet", "selftraining")],
)
def test_a_whole_adaptation(kind: str, method: str, folders: Path) -> None:
    trainer = adapted(kind, method, iterations=2, recipe={"volume_dice_every": 1})
    trainer.run_training()
    assert trainer.iteration == 2 and "Dice of validation volumes" in log(trainer)
    predictor = nnUNetPredictor(device=CPU, allow_tqdm=False, use_mirroring=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (0,), "checkpoint_best.pth")
    image = sorted((folders / "nnUNet_raw" / f"Dataset{TARGET}_Inverted" / "imagesTs").iterdir())[0]
    (result,) = predictor.predict_from_files_sequential([[str(image)]], None)
    assert result.shape == sitk.GetArrayFromImage(sitk.ReadImage(str(image))).shape
