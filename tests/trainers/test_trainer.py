"""fm_trainer: refusals, exact budgets, exact continuation, labels of every kind, weights."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper

import nnunet_fm.trainers
from nnunet_fm.data.augmentation import initial_patch_size
from nnunet_fm.data.sampling import FMDataLoader
from nnunet_fm.losses.dice_ce import DiceCE, OutputSupervision
from nnunet_fm.plans.planner import Options, planner_class
from nnunet_fm.trainers import loading
from nnunet_fm.weights.files import WeightsFileError
from tests.helpers import trainings
from tests.helpers.datasets import empty, training_folders, write_dataset, write_fingerprint
from tests.helpers.errors import fails
from tests.helpers.trainings import Killed, kill_after, record_losses

CPU = torch.device("cpu")
SHAPE = (18, 20, 22)
DIMS = [8, 8, 8, 16, 16, 16]
"""Channels of a smaller STU-Net, for speed."""
TINY = {"iterations_per_epoch": 3, "validation_iterations": 2, "save_every": 1, "augmentation": "nnunet"}
REGIONS = {"background": 0, "whole": [1, 2], "core": 2}
DATASETS: dict[str, dict[str, Any]] = {
    "plain": {},
    "channels": {"channels": ("CT", "PET", "MRI")},
    "regions": {"labels": REGIONS, "regions_class_order": [1, 2]},
    "ignore": {"labels": {"background": 0, "one": 1, "ignore": 2}},
    "regions_ignore": {"labels": {**REGIONS, "ignore": 3}, "regions_class_order": [1, 2]},
}
NUMBERS = {name: 600 + i for i, name in enumerate(DATASETS)}


@pytest.fixture(scope="module", autouse=True)
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """nnU-Net's folders with one small preprocessed dataset per kind of labels; one thread, one process."""
    root = tmp_path_factory.mktemp("nnunet")
    with training_folders(root) as variables, pytest.MonkeyPatch.context() as patch:
        patch.setenv("NNUNET_FM_WEIGHTS", str(root / "weights"))
        for kind, arguments in DATASETS.items():
            folder = write_dataset(variables["nnUNet_raw"], NUMBERS[kind], name=kind, shape=SHAPE, **arguments)
            write_fingerprint(folder, [SHAPE] * 6, [(1.0, 1.0, 1.0)] * 6)
        yield root


@pytest.fixture(autouse=True)
def empty_results(folders: Path) -> Iterator[None]:
    """Every test trains into an empty folder; what it wrote (checkpoints of 200 MB and more) goes when it ends."""
    yield
    empty(folders / "nnUNet_results")


def make_plan(
    kind: str, planner: str = "FMPlanner_stunet_s", plans_name: str | None = None, **options: Any
) -> dict[str, Any]:
    """Plan and preprocess a dataset; plans of the same preprocessing find its folder."""
    recipe = {**TINY, **options.pop("recipe", {})}
    if planner == "FMPlanner_stunet_s":
        options.setdefault("network", {"dims": DIMS})
    made = Options(iterations=options.pop("iterations", 6), recipe=recipe, force=True, **options)
    planned = planner_class(planner)(NUMBERS[kind], 40, plans_name=plans_name, options=made).plan_experiment()
    preprocess_dataset(
        NUMBERS[kind], planned["plans_name"], list(planned["configurations"]), [1], show_progress_bar=False
    )
    return planned


def make_trainer(plans: dict[str, Any], name: str = "fm_trainer_scratch", **more: Any) -> Any:
    return trainings.make_trainer(plans, name, **more)


def preprocessed(plans: dict[str, Any]) -> Path:
    return Path(os.environ["nnUNet_preprocessed"], plans["dataset_name"])


@pytest.mark.parametrize(
    ("planner", "name", "configuration", "expected"),
    [
        ("FMPlanner_stunet_s", "fm_trainer_stunet_b", None, ("plan-model", "stunet_b")),
        ("FMPlanner_stunet_s", "fm_trainer_scratch", "2d", ("configuration-missing", "2d")),
        ("FMPlanner_stunet_s", "fm_trainer_linear", None, ("part-unknown", "linear")),
        ("FMPlanner_vanilla_unet3d", "fm_trainer_freeze", None, ("part-unknown", "freeze")),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    folders: Path, planner: str, name: str, configuration: str | None, expected: tuple[str, ...]
) -> None:
    plans = make_plan("plain", planner)
    with fails(*expected):
        make_trainer(plans, name, configuration=configuration)
    assert not list(folders.glob(f"nnUNet_results/*/{name}__*"))


def test_stock_plans_need_a_pinned_trainer_of_their_dimension(folders: Path) -> None:
    plans = make_plan("plain")
    stock = {k: v for k, v in plans.items() if k != "nnunet_fm"} | {"plans_name": "nnUNetPlans"}
    with fails("plan-stock"):
        make_trainer(stock, "fm_trainer")
    with fails("configuration-dimension"):
        make_trainer(stock, "fm_trainer_dinov2_s")
    with fails("cascade-second"):
        cascade = json.loads(json.dumps(stock))
        cascade["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
        make_trainer(cascade, "fm_trainer_stunet_s", configuration="3d_cascade_fullres")
    assert not list(folders.glob("nnUNet_results/*/*nnUNetPlans*"))


def test_pinned_trainers_warn_when_plans_transpose(folders: Path) -> None:
    plans = make_plan("plain")
    stock = {k: v for k, v in plans.items() if k != "nnunet_fm"} | {
        "plans_name": "nnUNetPlansT",
        "transpose_forward": [2, 0, 1],
    }
    trainer = make_trainer(stock, "fm_trainer_stunet_s_scratch")
    assert "transpose the axes to [2, 0, 1]" in Path(trainer.log_file).read_text()


def test_missing_weights_stop_with_an_instruction() -> None:
    trainer = make_trainer(make_plan("plain"), "fm_trainer")
    with fails("weights-missing", "small_ep4k.model", "fm_trainer_scratch"):
        trainer.initialize()
    assert trainer.network is None


def test_data_are_loaded_and_computed_within_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """nnU-Net starts twelve processes, and a thread for each core of the machine, whatever a container allows."""
    monkeypatch.setattr("nnunet_fm.trainers.loading.usable_cores", lambda: 3)
    monkeypatch.setattr("nnunet_fm.trainers.loading.get_allowed_n_proc_DA", lambda: 12)
    monkeypatch.setenv("nnUNet_n_proc_DA", "12")
    assert loading.loading_processes() == 12, "as the user says"
    monkeypatch.delenv("nnUNet_n_proc_DA")
    assert loading.loading_processes() == 3
    monkeypatch.setattr("nnunet_fm.trainers.loop.threads", lambda: 2)
    counts: list[int] = []
    monkeypatch.setattr("torch.get_num_threads", lambda: 16)
    monkeypatch.setattr("torch.set_num_threads", counts.append)
    make_trainer(make_plan("plain", plans_name="FMPlans_within")).initialize()
    assert counts[0] == 2


def test_a_trainer_can_be_built_by_hand() -> None:
    """nnU-Net's constructor pops ``continue_training`` from the plans, and fails where it is missing."""
    plans = make_plan("plain")
    raw_json = json.loads((preprocessed(plans) / "dataset.json").read_text())
    trainer = nnunet_fm.trainers.fm_trainer_scratch(plans, "3d_fullres", 0, raw_json, CPU)
    trainer.initialize()
    # nnU-Net would call a method of this name on every module, and overwrite loaded weights.
    assert not any(hasattr(module, "initialize") for module in trainer.network.modules())


def test_the_iterations_are_met_exactly() -> None:
    trainer = make_trainer(make_plan("plain", iterations=7, plans_name="FMPlans_seven"))
    losses = record_losses(trainer)
    trainer.run_training()
    assert trainer.iteration == 7 and trainer.num_epochs == trainer.current_epoch == 3
    assert len(losses) == 7 + 3 * 2
    assert trainer.optimizer.param_groups[0]["lr"] > 0  # the last step still had a rate; the schedule ends after it


def test_time_ends_a_training_and_the_rate_with_it() -> None:
    plans = make_plan(
        "plain",
        iterations=10**6,
        plans_name="FMPlans_timed",
        recipe={"max_minutes": 0.1, "iterations_per_epoch": 2, "scratch": None},
    )
    trainer = make_trainer(plans)
    rates: list[float] = []
    step = trainer.train_step
    trainer.train_step = lambda batch: (step(batch), rates.append(trainer.optimizer.param_groups[0]["lr"]))[0]
    trainer.run_training()
    assert 6 <= trainer.seconds_spent < 60 and 1 < trainer.iteration < 10**6
    assert rates == sorted(rates, reverse=True) and rates[-1] < rates[0]
    checkpoint = torch.load(Path(trainer.output_folder, "checkpoint_final.pth"), weights_only=False)
    assert checkpoint["nnunet_fm"]["seconds_spent"] >= 6


@pytest.mark.parametrize("bf16", [pytest.param("0", marks=pytest.mark.slow), "1"])
def test_continuing_gives_the_losses_of_an_uninterrupted_run(monkeypatch: pytest.MonkeyPatch, bf16: str) -> None:
    monkeypatch.setenv("NNUNET_FM_BF16", bf16)
    plans = make_plan("plain", iterations=9, plans_name=f"FMPlans_resume{bf16}")
    whole = make_trainer(plans)
    expected = record_losses(whole)
    whole.run_training()
    first = make_trainer(plans, fold=0)
    before = record_losses(first)
    kill_after(first, 1)
    with pytest.raises(Killed):
        first.run_training()
    second = make_trainer(plans, fold=0)
    second.load_checkpoint(str(Path(first.output_folder, "checkpoint_latest.pth")))
    after = record_losses(second)
    second.run_training()
    assert before + after == expected and len(expected) == 9 + 3 * 2


def test_the_best_score_is_in_the_latest_checkpoint() -> None:
    trainer = make_trainer(make_plan("plain", iterations=6, plans_name="FMPlans_best"))
    written: list[tuple[str, float]] = []
    save = trainer.save_checkpoint

    def spy(filename: str) -> None:
        save(filename)
        written.append((Path(filename).name, torch.load(filename, weights_only=False)["_best_ema"]))

    trainer.save_checkpoint = spy
    trainer.run_training()
    assert [name for name, _ in written[:2]] == ["checkpoint_best.pth", "checkpoint_latest.pth"]
    assert written[0][1] == written[1][1] is not None
    assert not list(Path(trainer.output_folder).glob("*.partial"))


def test_maps_of_slices_that_come_again_are_kept() -> None:
    """The log says so, and the losses are those without."""
    losses = {}
    for gigabytes in (0, 1):
        planned = make_plan(
            "plain", "FMPlanner_dinov2_s_linear_freeze", f"FMPlans_cache_{gigabytes}", network={"image_size": 28},
            recipe={"augmentation": "none", "mirror": False, "volume_dice_every": 0, "feature_cache": gigabytes},
        )  # fmt: skip
        trainer = make_trainer(planned, "fm_trainer_linear_freeze_scratch")
        trainer.initialize()
        losses[gigabytes] = record_losses(trainer)
        trainer.run_training()
        said = Path(trainer.log_file).read_text().count("of the feature maps were known; those of")
        assert said == (trainer.num_epochs if gigabytes else 0)
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


PLANNERS = ("FMPlanner_stunet_s", "FMPlanner_vanilla_unet3d", "FMPlanner_vanilla_unet2d", "FMPlanner_dinov2_s_linear")
IN_BRIEF = {("regions_ignore", PLANNERS[0]), ("channels", PLANNERS[3])}


@pytest.mark.parametrize(
    ("kind", "planner"),
    [
        pytest.param(kind, planner, marks=[] if (kind, planner) in IN_BRIEF else pytest.mark.slow)
        for kind in DATASETS
        for planner in PLANNERS
    ],
)
def test_labels_and_channels_of_every_kind(kind: str, planner: str, folders: Path) -> None:
    """Train, validate and predict through nnU-Net's own predictor."""
    # A 2D network is called for every slice and every mirrored version of it: one version, small networks.
    small: dict[str, dict[str, Any]] = {
        "FMPlanner_dinov2_s_linear": {"network": {"image_size": 28}, "batch": 2},
        "FMPlanner_vanilla_unet2d": {"patch": [64, 64], "batch": 2},
    }
    recipe = {"validation_iterations": 1, **({"mirror": []} if planner in small else {})}
    plans = make_plan(kind, planner, iterations=1, recipe=recipe, **small.get(planner, {}))
    trainer = make_trainer(plans)
    losses = record_losses(trainer)
    trainer.run_training()
    assert np.isfinite(losses).all()
    trainer.perform_actual_validation(save_probabilities=False)
    assert trainer.bare_network.deep_supervision == trainer.enable_deep_supervision
    predictor = nnUNetPredictor(device=CPU, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, use_folds=(0,))
    images = sorted((folders / "nnUNet_raw" / plans["dataset_name"] / "imagesTs").glob("*.nii.gz"))
    (result,) = predictor.predict_from_files_sequential([[str(i) for i in images]], None)
    assert result.shape == SHAPE and set(np.unique(result)) <= {0, 1, 2}


def test_mirroring_and_augmentation_follow_the_recipe() -> None:
    plans = make_plan("plain", plans_name="FMPlans_light", recipe={"augmentation": "light"})
    trainer = make_trainer(plans)
    rotation, dummy, initial, mirror = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    assert list(initial) == trainer.configuration_manager.patch_size and mirror is None and not dummy
    assert trainer.inference_allowed_mirroring_axes is None
    transforms = trainer.get_training_transforms(
        initial, rotation, None, mirror, dummy, use_mask_for_norm=[False], foreground_labels=[1, 2]
    )
    kinds = [type(getattr(t, "transform", t)).__name__ for t in transforms.transforms]
    assert kinds[:2] == ["GaussianNoiseTransform", "MultiplicativeBrightnessTransform"]
    assert not {"SpatialTransform", "MirrorTransform", "GammaTransform", "GaussianBlurTransform"} & set(kinds)
    assert len(kinds) == 3  # what is no augmentation stays: the label -1 becomes background
    for preset, flip in (("nnunet", "MirrorTransform"), ("stunet_dae", "FlipTransform")):
        plans["nnunet_fm"]["recipe"] |= {"augmentation": preset, "mirror": [0, 1]}
        trainer = make_trainer(plans)
        rotation, dummy, initial, mirror = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        assert mirror == trainer.inference_allowed_mirroring_axes == (0, 1)
        transforms = trainer.get_training_transforms(
            initial, rotation, None, mirror, dummy, use_mask_for_norm=[False], foreground_labels=[1, 2]
        )
        assert [t.allowed_axes for t in transforms.transforms if type(t).__name__ == flip] == [(0, 1)]
    plans["nnunet_fm"]["recipe"]["test_time_mirroring"] = False
    trainer = make_trainer(plans)
    assert trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[3] == (0, 1)
    assert trainer.inference_allowed_mirroring_axes is None


def test_a_spatial_preset_loads_larger_patches() -> None:
    trainer = make_trainer(make_plan("plain", plans_name="FMPlans_spad", recipe={"augmentation": "spad"}))
    _, dummy, initial, _ = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    patch = trainer.configuration_manager.patch_size
    assert not dummy and list(initial) == initial_patch_size("spad", patch) and np.greater(initial, patch).all()


OFFICIAL = {
    "optimizer": "adamw",
    "decay_norms": False,
    "schedule": "warmup_cosine",
    "final_rate": 1e-6,
    "loss": "dice_ce",
    "gradient_clip": None,
}


@pytest.mark.parametrize(
    ("kind", "recipe"),
    [
        ("regions_ignore", {"supervision": "outputs", "sampling": "pos_neg", "augmentation": "spad"}),
        ("ignore", {"supervision": "targets", "sampling": "balanced", "augmentation": "stunet_dae"}),
    ],
)
def test_official_recipes_train_with_every_kind_of_label(kind: str, recipe: dict[str, Any]) -> None:
    plans = make_plan(kind, iterations=2, plans_name=f"FMPlans_{recipe['sampling']}", recipe=OFFICIAL | recipe)
    trainer = make_trainer(plans)
    losses = record_losses(trainer)
    targets: list[Any] = []
    step = trainer.train_step
    trainer.train_step = lambda batch: (targets.append(batch["target"]), step(batch))[1]
    trainer.run_training()
    assert np.isfinite(losses).all() and len(losses) == 2 + 2 and all(loss > 0 for loss in losses)
    outputs = recipe["supervision"] == "outputs"
    assert isinstance(trainer.loss, OutputSupervision if outputs else DeepSupervisionWrapper)
    assert isinstance(trainer.loss.loss, DiceCE)
    assert all(len(t) == 1 if outputs else len(t) == len(trainer.loss.weight_factors) for t in targets)
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0, trainer.recipe.weight_decay}
    training, validation = trainer.dataloader_train.data_loader, trainer.dataloader_val.data_loader
    assert type(training) is FMDataLoader and training.sampling == recipe["sampling"]
    assert type(validation) is nnUNetDataLoader


def test_the_gradient_is_clipped_where_the_recipe_says_so() -> None:
    norms = {}
    for clip in (1e-3, None):
        plans = make_plan("plain", plans_name=f"FMPlans_clip{clip}", recipe={"gradient_clip": clip})
        trainer = make_trainer(plans)
        trainer.initialize()
        trainer.train_step(next(trainer.get_dataloaders()[0]))
        gradients = [p.grad.norm() for p in trainer.network.parameters() if p.grad is not None]
        norms[clip] = float(torch.stack(gradients).norm())
    assert norms[1e-3] == pytest.approx(1e-3, rel=1e-2) and norms[None] > 1e-2


def test_the_network_wraps_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(make_plan("regions"))
    asked: list[tuple[Any, bool]] = []

    def wrap_loss(self: Any, loss: torch.nn.Module, *, regions: bool = False) -> torch.nn.Module:
        asked.append((loss, regions))
        return torch.nn.Identity()

    monkeypatch.setattr("nnunet_fm.networks.stunet.STUNet.wrap_loss", wrap_loss)
    trainer.initialize()
    assert type(trainer.loss) is torch.nn.Identity
    assert [(type(loss), regions) for loss, regions in asked] == [(DeepSupervisionWrapper, True)]


def test_official_weights_load_with_a_report(folders: Path) -> None:
    plans = make_plan("channels", plans_name="FMPlans_official")
    donor = make_trainer(plans)
    donor.initialize()
    official = {
        n: torch.randn_like(t) for n, t in donor.network.state_dict().items() if not n.startswith("seg_outputs")
    }
    for name in list(official):  # the file has one input channel and 105 classes
        if official[name].ndim == 5 and official[name].shape[1] == 3:
            official[name] = official[name][:, :1].clone()
    official |= {f"seg_outputs.{i}.weight": torch.zeros(105, w, 1, 1, 1) for i, w in enumerate(DIMS[-2::-1])}
    official |= {f"seg_outputs.{i}.bias": torch.zeros(105) for i in range(5)}
    cache = folders / "weights"
    cache.mkdir(exist_ok=True)
    file = cache / "small_ep4k.model"
    torch.save({"state_dict": official, "epoch": 4000}, file)
    try:
        trainer = make_trainer(plans, "fm_trainer")
        trainer.initialize()
        report = json.loads(Path(trainer.output_folder, "weights_report.json").read_text())
        weight = trainer.network.conv_blocks_context[0][0].conv1.weight
        torch.testing.assert_close(
            weight, official["conv_blocks_context.0.0.conv1.weight"].expand(-1, 3, -1, -1, -1) / 3
        )
        assert torch.equal(
            trainer.network.conv_blocks_context[3][0].conv2.weight, official["conv_blocks_context.3.0.conv2.weight"]
        )
        assert report[0]["counts"]["dropped"] == 10 and report[0]["counts"]["adapted"] == 2
        trainer.current_epoch = -1
        trainer.save_checkpoint(str(Path(trainer.output_folder, "checkpoint_latest.pth")))
    finally:
        file.unlink()
    # A checkpoint holds what the weights have become: continuing needs no official file.
    again = make_trainer(plans, "fm_trainer")
    again.load_checkpoint(str(Path(trainer.output_folder, "checkpoint_latest.pth")))
    assert torch.equal(again.network.conv_blocks_context[0][0].conv1.weight, weight)


def test_stock_pretrained_weights_flag_works_between_plans() -> None:
    first = make_trainer(make_plan("plain", iterations=1, plans_name="FMPlans_first"))
    first.run_training()
    second = make_trainer(make_plan("plain", plans_name="FMPlans_second"))
    second.initialize()
    load_pretrained_weights(second.network, str(Path(first.output_folder, "checkpoint_final.pth")))
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.network.state_dict().values(), second.network.state_dict().values(), strict=True)
    )


def test_pretrained_weights_of_other_classes_and_channels(tmp_path: Path) -> None:
    first = make_trainer(make_plan("plain"))
    first.initialize()
    first.current_epoch = -1
    first.save_checkpoint(str(tmp_path / "checkpoint_final.pth"))
    learned = first.network.state_dict()
    for kind in ("channels", "regions"):  # regions are as many outputs as the classes, and others
        second = make_trainer(make_plan(kind), "fm_trainer")  # needs no official file
        maybe_load_checkpoint(second, False, False, str(tmp_path / "checkpoint_final.pth"))
        own = second.network.state_dict()
        same = {
            name for name in own if own[name].shape == learned[name].shape and torch.equal(own[name], learned[name])
        }
        others = {name.split(".")[0] for name in own if name not in same and name.endswith(("weight", "bias"))}
        assert others == ({"seg_outputs"} if kind == "regions" else {"conv_blocks_context"})
        (log,) = Path(second.output_folder).glob("training_log_*.txt")
        lines = log.read_text().splitlines()
        assert any("Pretrained weights: " in line and "start anew" in line for line in lines)


def test_pretrained_weights_that_do_not_fit_are_a_sentence(tmp_path: Path) -> None:
    trainer = make_trainer(make_plan("plain"))
    stock = {"encoder.stages.0.0.convs.0.conv.weight": torch.zeros(32, 1, 3, 3, 3)}
    arguments = {"plans": {"plans_name": "nnUNetPlans"}, "dataset_json": None}
    files = {
        "stock": {"network_weights": stock, "trainer_name": "nnUNetTrainer", "init_args": arguments},
        "official": {"state_dict": stock},
    }
    for name, content in files.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(WeightsFileError) as error:
            maybe_load_checkpoint(trainer, False, False, str(tmp_path / name))
        assert "\n" not in str(error.value) and (
            name == "official" or "nnUNetTrainer and plans nnUNetPlans" in str(error.value)
        )
    with fails("weights-unreadable"):
        maybe_load_checkpoint(trainer, False, False, str(tmp_path / "absent"))


def test_freeze_trains_nothing_of_the_encoder() -> None:
    trainer = make_trainer(make_plan("plain", iterations=2, plans_name="FMPlans_freeze"), "fm_trainer_freeze_scratch")
    trainer.initialize()
    before = {n: t.clone() for n, t in trainer.network.state_dict().items()}
    trainer.run_training()
    moved = {n for n, t in trainer.network.state_dict().items() if not torch.equal(t, before[n])}
    assert moved and not any(n.startswith("conv_blocks_context") for n in moved)
