"""Shell completion, from names of files and folders only, so that it answers at once.

Each function takes the typed beginning and returns all words that start with it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from nnunet_fm.adapters import ADAPTERS
from nnunet_fm.heads import HEADS
from nnunet_fm.io.dataset_names import find_datasets


def complete_models(incomplete: str) -> list[str]:
    """Names of model cards, including those of the user's own folder."""
    folders = [resources.files("nnunet_fm.plans").joinpath("cards")]
    if (own := os.environ.get("NNUNET_FM_CARDS")) and os.path.isdir(own):
        folders.append(Path(own))
    names = (file.name for folder in folders for file in folder.iterdir())
    return _begin(incomplete, (n.removesuffix(".yaml") for n in names if n.endswith(".yaml") and not n.startswith("_")))


def complete_heads(incomplete: str) -> list[str]:
    """Decode heads."""
    return _begin(incomplete, HEADS)


def complete_adapters(incomplete: str) -> list[str]:
    """Adapters."""
    return _begin(incomplete, ADAPTERS)


def complete_converters(incomplete: str) -> list[str]:
    """Names of datasets that can be converted."""
    from nnunet_fm.dataset_conversion import CONVERTERS

    return _begin(incomplete, CONVERTERS)


def complete_datasets(incomplete: str) -> list[str]:
    """IDs of the datasets in nnU-Net's three folders; names if the beginning is that of a name."""
    found = find_datasets()
    named = incomplete.startswith("D")
    return _begin(incomplete, (name for names in found.values() for name in names) if named else map(str, found))


def complete_trainers(incomplete: str) -> list[str]:
    """Trainers of trained models."""
    return _begin(incomplete, _trained(0))


def complete_plans(incomplete: str) -> list[str]:
    """Plans of trained models."""
    return _begin(incomplete, _trained(1))


def complete_configurations(incomplete: str) -> list[str]:
    """Configurations of trained models."""
    return _begin(incomplete, _trained(2))


def _trained(part: int) -> list[str]:
    """One part of the names ``<trainer>__<plans>__<configuration>`` of all folders in nnUNet_results."""
    models = (model.name.split("__") for dataset in _children("nnUNet_results") for model in _inside(dataset))
    return [parts[part] for parts in models if len(parts) == 3]


def _children(variable: str) -> list[Path]:
    folder = os.environ.get(variable)
    return _inside(Path(folder)) if folder else []


def _inside(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_dir()]
    except OSError:
        return []


def _begin(incomplete: str, words: Iterable[str]) -> list[str]:
    return sorted({word for word in words if word.startswith(incomplete)})
