"""Plans of every model on three kinds of data, of options, and of adaptations; only fingerprints are made."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from nnunet_fm.models.registry import cards
from tests.golden.command import run
from tests.golden.record import Subjects, Wanted, against_first, plain
from tests.helpers.datasets import write_dataset, write_fingerprint

CASES = 5
DATA: dict[str, dict[str, Any]] = {
    "ct": {
        "number": 501,
        "name": "AortaSeg24",
        "shape": (700, 450, 450),
        "spacing": (1.0, 1.0, 1.0),
    },
    "mr": {
        "number": 502,
        "name": "HCP_T1",
        "channels": ("T1", "T2"),
        "labels": {"background": 0, "hippocampus_left": 1, "hippocampus_right": 2},
        "shape": (36, 50, 35),
        "spacing": (1.0, 1.0, 1.0),
    },
    "thick": {
        "number": 503,
        "name": "Thick",
        "channels": ("MRI",),
        "labels": {"background": 0, "whole": [1, 2], "core": 2},
        "regions_class_order": [1, 2],
        "shape": (22, 320, 300),
        "spacing": (6.0, 0.7, 0.7),
    },
}
TARGET = 504

SMALL_GB, LARGE_GB = "8", "80"
FITTED = ("stunet_s", "suprem", "dinov2_s", "sam_b", "vanilla_unet3d")
"""Models whose plans are fitted to little memory: for others, counting it for many sizes of patches is slow."""

COMBINATIONS = [
    ("dinov2_s", "linear", "freeze"),
    ("dinov2_s", "segformer", "lora"),
    ("dinov2_s", "samdec", "ladder"),
    ("dinov2_s", "unetdec", "full"),
    ("dinov2_b", "da_small", "rein"),
    ("sam_b", "samdec", "ladder"),
    ("sam_b", "samdec_frozen_pe", "full"),
    ("medsam_b", "hsam", "lora"),
    ("mae_b", "resdec", "rein_lora"),
    ("resnet18", "linear", "freeze"),
    ("resnet50", "unetdec_small", "lora"),
    ("stunet_s", None, "freeze"),
    ("suprem", None, "lora"),
]

OPTIONS: dict[str, str] = {
    "iterations, patch, batch": "-m stunet_s --iterations 77 --patch 64 96 96 --batch 1",
    "spacing": "-m stunet_s --spacing 3 1 1",
    "spacing in the plane": "-m dinov2_s --spacing 1 2",
    "native spacing": "-m swinmm --spacing native",
    "minutes": "-m stunet_s --variant quick --minutes 30",
    "epochs": "-m resnet18 --epochs 7 --train-cases 2 --seed 3",
    "slice axis": "-m dinov2_s --head linear --slice-axis x",
    "sagittal": "-m vanilla_unet2d --slice-axis sagittal",
    "mirroring": "-m stunet_s --mirror z,y",
    "no mirroring": "-m dinov2_s --mirror none",
    "recipe": "-m dinov2_s --set recipe.loss=ce --set recipe.learning_rate=1e-5 --set recipe.augmentation=none",
    "network": "-m spadnet --set network.spad_patch_depth=auto",
    "portable": "-m stunet_s --portable",
    "portable, window": "-m suprem --variant thesis --portable",
    "other weights": "-m suprem --weights swinunetr_ssl_50000",
    "head weights": "-m dinov2_s --head samdec --head-weights medsam",
    "too little memory": "-m suprem -gpu_memory_target 0.6",
    "other datasets": "-m vanilla_unet2d --eval-datasets 505",
    "illegal patch": "-m stunet_s --patch 65 96 96",
    "illegal recipe": "-m stunet_s --set recipe.los=ce",
    "illegal head": "-m resnet18 --head samdec",
    "illegal axis": "-m stunet_s --slice-axis x",
}

SOURCES: dict[str, tuple[str, str]] = {
    "dinov2_s_linear": ("-m dinov2_s --head linear --epochs 3", "fm_trainer"),
    "dinov2_s_linear_full": ("-m dinov2_s --head linear --adapter full", "fm_trainer_scratch"),
    "sam_b": ("-m sam_b --variant thesis", "fm_trainer_segformer_freeze"),
    "vanilla_unet2d": ("-m vanilla_unet2d", "fm_trainer"),
    "stunet_s": ("-m stunet_s --patch 32 32 32 --spacing 1 1 1", "fm_trainer"),
}
"""Model that is adapted -> options of its plan, and its trainer."""

ADAPTATIONS: dict[str, str] = {
    "self-training": "--method selftraining",
    "five labelled": "--method selftraining --labelled 5 --confidence 0.8 --epochs 4",
    "named labelled": "--method selftraining --labelled-cases case_01 case_03 --seed 9",
    "teacher": "--method selftraining --teacher-momentum 0.99 --update-every 5 --train adapter",
    "faithful self-training": "--method selftraining --faithful",
    "entropy": "--method entropymin",
    "entropy, all, iterations": "--method entropymin --train all --iterations 33",
    "recipe": "--method entropymin --set recipe.learning_rate=1e-5 --set recipe.augmentation=none --name FMPlans_mine",
    "faithful entropy": "--method entropymin --faithful",
    "labels without use": "--method entropymin --labelled 2",
    "teacher without use": "--method entropymin --update-every 3",
}


def plans(root: Path, wanted: Wanted, *, everything: bool) -> Subjects:
    """Plans of the smallest model of each family, or of all."""
    folders = {kind: _dataset(root, **about) for kind, about in DATA.items()}
    smallest = list({(card.family, card.dim): name for name, card in reversed(cards().items())}.values())
    for model, card in cards().items():
        if wanted(f"plans/{model}") and (everything or model in smallest):
            memory = SMALL_GB if model in FITTED else LARGE_GB
            made = {}
            for kind, folder in folders.items():
                for variant in card.variants:
                    words = ["-m", model, "--variant", variant, "-gpu_memory_target", memory]
                    made[f"{kind}, {variant}"] = _plan(root, folder, words)
            yield f"plans/{model}", against_first(made)
    if wanted("plans/heads and adapters"):
        made = {}
        for model, head, adapter in COMBINATIONS:
            words = ["-m", model, "--adapter", adapter, "-gpu_memory_target", LARGE_GB]
            words += ["--head", head] if head else []
            made[" ".join(filter(None, (model, head, adapter)))] = _plan(root, folders["thick"], words)
        yield "plans/heads and adapters", against_first(made)
    if wanted("plans/options"):
        _dataset(root, **{**DATA["ct"], "number": 505, "name": "Other", "shape": (60, 80, 90)})
        made = {f"{kind}, chosen by the planner": _plan(root, folder, []) for kind, folder in folders.items()}
        for case, options in OPTIONS.items():
            made[case] = _plan(root, folders["ct"], ["-gpu_memory_target", LARGE_GB, *options.split()])
        yield "plans/options", against_first(made)
    yield from _adaptations(root, folders["mr"], wanted)


def _adaptations(root: Path, source: Path, wanted: Wanted) -> Subjects:
    target = _dataset(root, **{**DATA["mr"], "number": TARGET, "name": "HCP_T2", "shape": (30, 44, 52)})
    wrong = _dataset(root, **{**DATA["mr"], "number": 506, "name": "Wrong", "labels": {"background": 0, "other": 1}})
    for name in filter(lambda source: wanted(f"adaptations/{source}"), SOURCES):
        words, trainer = SOURCES[name]
        model = _trained(root, source, words.split(), trainer)
        made = {
            case: _written(root, target, ["adapt", "--source", str(model), "--target", str(TARGET), *options.split()])
            for case, options in ADAPTATIONS.items()
        }
        made["other labels"] = _written(
            root, wrong, ["adapt", "--source", str(model), "--target", "506", "--method", "entropymin"]
        )
        yield f"adaptations/{name}", against_first(made)


def _dataset(
    root: Path, *, number: int, name: str, shape: Sequence[int], spacing: Sequence[float], **more: Any
) -> Path:
    """A dataset of tiny images, with the fingerprint of large ones; returns its raw folder."""
    more.setdefault("channels", ("CT",))
    raw = write_dataset(root / "nnUNet_raw", number, name=name, shape=(8, 8, 8), cases=CASES, test_cases=0, **more)
    shapes = [[edge + (2 * case - 3) * (axis == 1) for axis, edge in enumerate(shape)] for case in range(CASES)]
    write_fingerprint(raw, shapes, [spacing] * CASES)
    return raw


def _plan(root: Path, raw: Path, words: Sequence[str]) -> dict[str, Any]:
    return _written(root, raw, ["plan", "-d", raw.name[len("Dataset") :].split("_")[0], *words])


def _written(root: Path, raw: Path, words: Sequence[str]) -> dict[str, Any]:
    """Run a planning command; return its printed lines and its plans, and remove the plan files."""
    folder = root / "nnUNet_preprocessed" / raw.name
    before = set(folder.iterdir())
    said = run(*words)
    files = {}
    for file in sorted(set(folder.iterdir()) - before):
        if file.name.startswith("FMPlans"):
            files[file.name] = json.loads(file.read_text())
            file.unlink()
    masked = re.sub(r"\b[0-9a-f]{64}\b", "SHA256", json.dumps(plain({"printed": said, "files": files}, root)))
    content: dict[str, Any] = json.loads(masked)
    if len(files) == 1:
        (content["file"],) = content["files"]
        (content["plans"],) = content.pop("files").values()
    return content


def _trained(root: Path, raw: Path, words: Sequence[str], trainer: str) -> Path:
    """A model folder of such plans, with a checkpoint without weights."""
    plans: Mapping[str, Any] = _plan(root, raw, words)["plans"]
    (configuration,) = plans["configurations"]
    folder = root / "nnUNet_results" / raw.name / f"{trainer}__{plans['plans_name']}__{configuration}"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    shutil.copy(raw / "dataset.json", folder)
    content = {"trainer_name": trainer, "init_args": {"configuration": configuration}, "network_weights": {}}
    torch.save(content, folder / "fold_0" / "checkpoint_best.pth")
    return folder
