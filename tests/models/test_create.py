"""`create_model`: names, shapes of logits, official weights with their report, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import nnunet_fm
from nnunet_fm.errors import InvalidValueError
from nnunet_fm.models.names import UnknownNameError
from nnunet_fm.weights.cache import MissingWeightsError
from tests.helpers.official_files import write_official


@pytest.mark.parametrize(
    ("name", "size"), [("stunet_s", (32, 32, 32)), ("dinov2_s_linear_lora", (28, 42)), ("resnet18", (64, 64))]
)
def test_a_network_without_weights(name: str, size: tuple[int, ...]) -> None:
    network = nnunet_fm.create_model(name, num_classes=4, in_channels=2, pretrained=False, patch_size=size)
    with torch.inference_mode():
        assert network(torch.zeros(1, 2, *size)).shape == (1, 4, *size)
    assert not network.training


def test_official_weights_with_their_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNUNET_FM_WEIGHTS", str(tmp_path))
    with pytest.raises(MissingWeightsError, match="small_ep4k.model"):
        nnunet_fm.create_model("stunet_s", num_classes=4)
    write_official("stunet_s", tmp_path)
    network = nnunet_fm.create_model("stunet_s", num_classes=4)
    (section,) = network.load_report.sections
    assert section.counts["matched"] > 100 and section.file and "matched" in str(network.load_report)
    again = nnunet_fm.create_model("stunet_s", num_classes=4, pretrained="stunet_small_totalsegmentator")
    assert (again.state_dict()[section.matched[0]] == network.state_dict()[section.matched[0]]).all()


def test_what_is_refused() -> None:
    with pytest.raises(UnknownNameError) as refused:
        nnunet_fm.create_model("stunet_x", num_classes=2)
    assert "stunet_s" in str(refused.value)
    for name, options in (("stunet_s_scratch", {}), ("vanilla_unet3d", {}), ("selftraining", {})):
        with pytest.raises(InvalidValueError):
            nnunet_fm.create_model(name, num_classes=2, **options)


def test_the_package_imports_nothing_by_itself() -> None:
    code = (
        "import sys; before = set(sys.modules); import nnunet_fm; "
        "print(sorted({m.split('.')[0] for m in set(sys.modules) - before} & {'torch', 'numpy', 'nnunetv2'})); "
        "print({'Predictor', 'create_model', 'plan'} <= set(dir(nnunet_fm)))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["[]", "True"]
    with pytest.raises(AttributeError):
        _ = nnunet_fm.nothing  # type: ignore[attr-defined]
