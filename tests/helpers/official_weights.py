"""Official state dicts and networks: load one into the other, or only account for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nnunet_fm.weights.load import FileRules, match_official
from nnunet_fm.weights.report import LoadReport


def load_official(
    network: nn.Module, state_dict: Mapping[str, Tensor], *, file: Path | None = None, **rules: Any
) -> LoadReport:
    """Copy an official state dict into a network; ``rules`` are those of `FileRules`."""
    return match_official(network, state_dict, FileRules(**rules), file=file).copy()


def check_official(network: nn.Module, state_dict: Mapping[str, Tensor], **rules: Any) -> LoadReport:
    """The account that `load_official` would give, nothing copied."""
    return match_official(network, state_dict, FileRules(**rules)).report
