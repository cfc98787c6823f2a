"""Our networks against outputs of the official code, and the runner that compares them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nnunet_fm.networks.stunet import STUNet
from tests.parity import cases, fill, run

CASES = Path(__file__).parent / "cases"
LARGE = (
    "stunet_large/*",
    "stunet_huge/*",
    "swinmm/roi96*",
    "swinmm/views20",
    "misfm_pctnet/thesis_patch",
    "pumit/thesis_patch",
    "suprem_swinunetr/aniso_2ch",
    "dae/small64",
    "sam_vit_b_encoder_1024",
)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=[pytest.mark.slow] if any(fnmatch(case.name, g) for g in LARGE) else [])
        for case in cases.read_cases(CASES)
    ],
)
def test_networks_compute_what_the_official_ones_do(case: cases.Case) -> None:
    deviations = run.compare(case)
    assert deviations and max(deviations.values()) <= run.LIMIT, deviations


# --- the runner --------------------------------------------------------------------------------------------------


def write_flat(folder: Path, name: str, outputs: dict[str, np.ndarray], stride: int = 3, **content: Any) -> None:
    stored = {key: array.reshape(-1)[::stride] for key, array in outputs.items()}
    np.savez(folder / f"{name}.npz", **stored)
    content["outputs"] = {
        key: {"shape": list(array.shape), "stride": stride, "std": float(array.std())} for key, array in outputs.items()
    }
    (folder / f"{name}.json").write_text(json.dumps(content))


def linear_case(
    folder: Path, name: str = "unheard_of", inputs: Sequence[str] = ("feat0", "feat1", "feat2"), **change: Any
) -> None:
    """A linear head of other widths, grid and number of maps, computed here by its formula."""
    shape, classes = (2, 5, 3, 4), 7
    features = [fill.inputs(shape, called) for called in inputs]
    x = torch.from_numpy(np.concatenate(features, axis=1))

    def weight(key: str, *size: int) -> torch.Tensor:
        return torch.from_numpy(fill.value(key, size)) * (3.0 if key == "conv_seg.bias" else 1.0)

    channels = x.shape[1]
    statistics = [weight(f"batch_norm.{k}", channels) for k in ("running_mean", "running_var", "weight", "bias")]
    x = F.batch_norm(x, *statistics)
    out = F.conv2d(x, weight("conv_seg.weight", classes, channels, 1, 1), weight("conv_seg.bias", classes))
    content = {
        "source": "made up",
        "module": "decoders.ConvHeadLinear",
        "constructor": {"in_channels": [shape[1]] * len(inputs), "num_classes": classes, "dropout_rat": 0.1},
        "inputs": [{"name": called, "shape": list(shape)} for called in inputs],
        "gains": {"^conv_seg\\.bias$": 3.0},
        **change,
    }
    write_flat(folder, name, {"out": out.numpy()}, **content)


@pytest.mark.parametrize("inputs", [("z", "input", "a"), ("same", "same"), ("feat1", "feat0")])
def test_inputs_are_taken_by_position_whatever_they_are_called(tmp_path: Path, inputs: tuple[str, ...]) -> None:
    linear_case(tmp_path, inputs=inputs)
    assert run.main([str(tmp_path)]) == 0


@pytest.mark.parametrize("stem", ["hqsam_mask_decoder_16", "thesis_linear_head"])
def test_official_names_of_arguments_say_nothing(tmp_path: Path, stem: str) -> None:
    shutil.copy(CASES / f"{stem}.npz", tmp_path)
    content = json.loads((CASES / f"{stem}.json").read_text())
    content["inputs"] = {f"argument {i}": given for i, given in enumerate(content["inputs"])}
    (tmp_path / f"{stem}.json").write_text(json.dumps(content))
    assert run.main([str(tmp_path)]) == 0


def test_an_unseen_flat_case_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    linear_case(tmp_path)
    assert run.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("unheard_of  out  ")


def test_an_unseen_case_of_the_other_layout_runs(tmp_path: Path) -> None:
    """STU-Net of other widths, depth, strides, channels and classes; the network is built here and not on meta."""
    pooling = [[1, 2, 2], [2, 2, 1], [1, 1, 1], [2, 2, 2], [1, 1, 1]]
    arguments = {"dims": [4, 6, 8, 8, 10, 12], "depth": [1, 2, 1, 1, 2, 1]}
    network = STUNet(3, 4, strides=[[1, 1, 1], *pooling], deep_supervision=True, **arguments)
    for key, tensor in network.state_dict().items():
        tensor.copy_(torch.from_numpy(fill.value(key, tuple(tensor.shape))))
    shape = (2, 3, 8, 16, 24)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("NNUNET_FM_BF16", "0")
        logits = [out.numpy() for out in network.eval()(torch.from_numpy(fill.inputs(shape, "other input")))]
    stride, start = [1, 1, 2, 3, 3], [0, 1, 0, 0, 1]
    window = tuple(slice(a, None, s) for a, s in zip(start, stride, strict=True))
    np.savez(tmp_path / "x.npz", **{f"odd/logits_ds{i}": out[window] for i, out in enumerate(logits)})
    outputs = [
        {"name": f"logits_ds{i}", "npz_key": f"odd/logits_ds{i}", "shape": list(out.shape), "std": float(out.std()),
         "stride": stride, "start": start}
        for i, out in enumerate(logits)
    ]  # fmt: skip
    constructor = {"input_channels": 3, "num_classes": 4, "pool_op_kernel_sizes": pooling, **arguments}
    entry = {"name": "odd", "inputs": {"x": {"shape": shape, "name": "other input"}}, "outputs": outputs}
    content = {"model": "stunet_tiny", "cases": [{**entry, "constructor": constructor}]}
    (tmp_path / "x.json").write_text(json.dumps(content))
    (case,) = cases.read_cases(tmp_path)
    assert case.name == "x/odd"
    deviations = run.compare(case)
    assert len(deviations) == 5 and max(deviations.values()) <= run.LIMIT


def unet_case(folder: Path, channels: int, widths: list[int], size: tuple[int, int]) -> None:
    """The classic U-Net by its description, for sizes that do not halve evenly."""
    shapes: dict[str, list[int]] = {}

    def get(key: str, *shape: int) -> torch.Tensor:
        shapes[key] = list(shape)
        return torch.from_numpy(fill.value(key, shape))

    def double(x: torch.Tensor, prefix: str, out: int) -> torch.Tensor:
        for conv, norm in ((0, 1), (3, 4)):
            x = F.conv2d(x, get(f"{prefix}.double_conv.{conv}.weight", out, x.shape[1], 3, 3), padding=1)
            names = ("running_mean", "running_var", "weight", "bias")
            x = F.relu(F.batch_norm(x, *(get(f"{prefix}.double_conv.{norm}.{n}", out) for n in names)))
            shapes[f"{prefix}.double_conv.{norm}.num_batches_tracked"] = []
        return x

    maps = [double(torch.from_numpy(fill.inputs((1, channels, *size))), "inc", widths[0])]
    for i, width in enumerate(widths[1:], 1):
        maps.append(double(F.max_pool2d(maps[-1], 2), f"down{i}.maxpool_conv.1", width))
    x = maps.pop()
    for i, width in enumerate(widths[-2::-1], 1):
        skip = maps.pop()
        up = F.conv_transpose2d(x, get(f"up{i}.up.weight", x.shape[1], width, 2, 2), get(f"up{i}.up.bias", width), 2)
        y, z = skip.shape[2] - up.shape[2], skip.shape[3] - up.shape[3]
        up = F.pad(up, (z // 2, z - z // 2, y // 2, y - y // 2))
        x = double(torch.cat((skip, up), dim=1), f"up{i}.conv", width)
    out = F.conv2d(x, get("outc.conv.weight", 6, widths[0], 1, 1), get("outc.conv.bias", 6))
    arguments = {"n_channels": channels, "n_classes": 6, "bilinear": False}
    inputs = [{"name": "input", "shape": [1, channels, *size]}]
    content = {"module": "benchmarks.UNet.unet.UNet", "constructor": arguments, "inputs": inputs, "state_dict": shapes}
    write_flat(folder, f"unet_{channels}", {"logits": out.numpy()}, **content)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_an_unseen_unet_runs(tmp_path: Path, channels: int) -> None:
    unet_case(tmp_path, channels, [4, 8, 16, 32], (37, 26))
    assert run.main([str(tmp_path)]) == 0


@pytest.mark.parametrize("key", ["conv_seg.weight", "batch_norm.running_var"])
def test_a_deviation_is_reported(
    tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    linear_case(tmp_path)
    true_value = cases.Case.value

    def wrong(self: cases.Case, name: str, *args: Any) -> torch.Tensor:
        return true_value(self, name, *args) * (1.001 if name == key else 1.0)

    monkeypatch.setattr(cases.Case, "value", wrong)
    assert run.main([str(tmp_path)]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_what_cannot_be_compared_is_a_failure_and_hides_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    linear_case(tmp_path, "a_unknown", module="decoders.UnknownHead")
    linear_case(tmp_path, "b_broken", constructor={})
    linear_case(tmp_path, "c_names", state_dict={"conv_seg.weight": [1]})
    linear_case(tmp_path, "d_good")
    assert run.main([str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    for line, beginning in zip(lines, ("a_unknown  -  NOT", "b_broken  -  ERR", "c_names  -  NOT"), strict=False):
        assert line.startswith(beginning)
    assert lines[3].startswith("d_good  out") and lines[4] == "4 cases, 3 failures"
    assert run.main([str(tmp_path), "--only", "d_*"]) == 0
    assert run.main([str(tmp_path), "--only", "e_*"]) == 2


def test_an_output_of_another_name_or_shape_is_a_failure(tmp_path: Path) -> None:
    linear_case(tmp_path)
    file = tmp_path / "unheard_of.json"
    content = json.loads(file.read_text())
    out = content["outputs"]["out"]
    file.write_text(json.dumps({**content, "outputs": {"other": out}}))
    assert run.main([str(tmp_path)]) == 1
    file.write_text(json.dumps({**content, "outputs": {"out": {**out, "shape": [2, 7, 4, 3]}}}))
    (case,) = cases.read_cases(tmp_path)
    assert run.compare(case) == {"out": float("inf")}


def made_up(**meta: Any) -> cases.Case:
    return cases.Case("x", "m", {}, [], [], meta)


def test_gains_may_be_stated_per_part_and_values_have_no_dimension() -> None:
    case = made_up(gains={"backbone": {"^pos$": 800.0}, "reins": {"^scale$": 10.0, "tokens(_a)?$": 200.0}})
    assert case.gain("pos", "backbone") == 800.0 and case.gain("pos", "reins") == 1.0
    assert case.gain("learnable_tokens_a", "reins") == 200.0 and case.gain("learnable_tokens_b", "reins") == 1.0
    scale = case.value("scale", (), "reins")
    assert scale.shape == () and scale.item() == pytest.approx(10 * float(fill.value("scale", ())))


@pytest.mark.parametrize(
    ("stated", "part", "prefix"),
    [
        (None, None, ""),
        ("image_encoder. (fill() is applied to the official names, which carry it.)", None, "image_encoder."),
        ("mask_decoder. and prompt_encoder.", "prompt_encoder", "prompt_encoder."),
        ("mask_decoder., mask_decoder2., prompt_encoder.", "mask_decoder2", "mask_decoder2."),
        ("mask_decoder. and prompt_encoder.", None, ""),
        ("none: keys filled under their bare names (scale, mlp.weight, ...)", "reins", ""),
    ],
)
def test_key_prefixes_are_read_from_their_sentences(stated: str | None, part: str | None, prefix: str) -> None:
    assert made_up(**({"key_prefix": stated} if stated else {})).prefix(part) == prefix


def test_filling_leaves_integers_and_skipped_names_alone() -> None:
    module = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    module[0].num_batches_tracked += 5
    before = module[1].bias.detach().clone()
    made_up(skip=["1.bias"]).fill(module)
    assert module[0].num_batches_tracked == 5 and torch.equal(module[1].bias, before)
    np.testing.assert_array_equal(module[1].weight.detach(), fill.value("1.weight", (2, 3)))
