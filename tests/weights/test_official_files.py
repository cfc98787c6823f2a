"""Official files, in names and shapes, load into the networks of the cards."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nnunet_fm.models.official import check, get_official, officials, recognise
from nnunet_fm.weights.load import FileRules, load_checkpoint
from tests.helpers.errors import fails
from tests.helpers.official_weights import load_official
from tests.helpers.weight_files import MANIFESTS, Small, official, same, small_file, v1_content

STRIDES = [[1, 1, 1]] + [[2, 2, 2]] * 5
STUNET_DROP = [r"seg_outputs\."]


@pytest.fixture(scope="module")
def stunet_file() -> dict[str, Tensor]:
    return official("stunet_small", classes=105)


def stunet(channels: int = 1, classes: int = 5) -> nn.Module:
    from nnunet_fm.networks.stunet import STUNet

    return STUNet(channels, classes, dims=[16, 32, 64, 128, 256, 256], depth=[1] * 6, strides=STRIDES)


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
    (section,) = load_checkpoint(network, tmp_path / "a.pth", FileRules(prefix=prefix)).sections
    assert len(section.matched) == 3 and same(network.state_dict(), small_file())


def test_stunet_with_four_channels_and_five_classes(tmp_path: Path, stunet_file: dict[str, Tensor]) -> None:
    torch.save(v1_content({f"module.{n}": t for n, t in stunet_file.items()}), tmp_path / "small_ep4k.model")
    network = stunet(channels=4)
    report = load_checkpoint(
        network, tmp_path / "small_ep4k.model", FileRules(drop=STUNET_DROP), containers=["state_dict"]
    )
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
    (section,) = load_checkpoint(stunet(classes=105), tmp_path / "small.pth", FileRules(drop=STUNET_DROP)).sections
    assert len(section.matched) == 120


def test_stunet_file_of_another_size_or_with_a_lost_key(tmp_path: Path, stunet_file: dict[str, Tensor]) -> None:
    shapes = json.loads((MANIFESTS / "stunet_base.json").read_text())["state_dict"]
    base = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    with fails("weights-mismatch") as error:
        load_official(stunet(), base, drop=STUNET_DROP)
    assert error.value.shapes["conv_blocks_context.0.0.norm1.weight"] == ([32], [16])
    lost = {n: t for n, t in stunet_file.items() if n != "upsample_layers.2.conv.bias"}
    torch.save({"state_dict": lost}, tmp_path / "small_ep4k.model")
    with fails("weights-mismatch", "small_ep4k", "1", "upsample_layers.2.conv.bias"):
        load_checkpoint(stunet(), tmp_path / "small_ep4k.model", FileRules(drop=STUNET_DROP))


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
    (section,) = load_checkpoint(network, tmp_path / "small_ep4k.model", FileRules(drop=STUNET_DROP)).sections
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
    (section,) = load_checkpoint(network, tmp_path / "dinov2_vits14_pretrain.pth", FileRules(drop=DINOV2_DROP)).sections
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
    with fails("weights-mismatch"):
        load_official(segmenter(), wide, drop=DINOV2_DROP)
    with fails("weights-mismatch", "vit.dino_head"):
        load_official(segmenter(), official("dinov2_vits14") | {"dino_head": torch.ones(1)}, drop=DINOV2_DROP)
