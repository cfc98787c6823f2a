"""Loading accounts for every name, and changes nothing where a tensor does not fit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nnunet_fm.weights.load import adapt_channels
from tests.helpers.errors import fails
from tests.helpers.official_weights import check_official, load_official
from tests.helpers.weight_files import Small, same, small_file


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
    facts = {"missing": ["body.weight"], "unexpected": ["extra.weight"], "shape": ["body.weight [4, 6]", "[4, 4]"]}
    with fails("weights-mismatch", *facts[fault]) as error:
        load_official(network, file)
    assert [error.value.missing, error.value.unexpected, list(error.value.shapes)].count([]) == 2
    assert same(network.state_dict(), before)


def test_only_the_declared_projection_is_adapted() -> None:
    file = small_file(channels=3)
    assert "stem.weight" in load_official(Small(), file).sections[0].adapted
    network = Small()
    network.keys_to_in_proj = ()  # type: ignore[assignment]
    with fails("weights-mismatch", "stem.weight"):
        load_official(network, file)
    file["stem.weight"] = file["stem.weight"][..., :1]
    with fails("weights-mismatch", "stem.weight"):
        load_official(Small(), file)


def test_dropping_and_prefix() -> None:
    file = {f"enc.{n}": t for n, t in small_file().items()}
    file |= {"enc.mask_token": torch.ones(1), "other.x": torch.ones(1)}
    (section,) = load_official(Small(), file, drop=["mask_token$"], prefix="enc.").sections
    assert len(section.matched) == 3
    assert section.dropped == {"enc.mask_token": "on purpose ('mask_token$')", "other.x": "not under 'enc.'"}
    with fails("weights-mismatch", "mask_token"):
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
    with fails("weights-mismatch", "1", "body.weight"):
        load_official(network, file, new=["^bod$"])
    file["body.weight"] = torch.ones(4, 5)  # new parts may be missing, not wrong
    with fails("weights-mismatch", "body.weight"):
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
    with fails("weights-mismatch", "body.base_layer.weight"):
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
    with fails("weights-mismatch", "body.weight"):
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
    with fails("weights-other", "file.pth"):
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
    with fails("weights-mismatch", "stray"):
        load_official(Translating(), file | {"old.stray": torch.ones(1)})


def test_a_part_loads_into_the_submodule_of_that_name() -> None:
    network = nn.Module()
    network.backbone, network.head = Small(), nn.Linear(2, 2)
    network.key_to_head = ("head",)  # type: ignore[assignment]
    network.keys_to_in_proj = ("backbone.stem",)  # type: ignore[assignment]
    (section,) = load_official(network, small_file(channels=3)).sections
    assert "stem.weight" in section.adapted
    with fails("weights-mismatch", "head.weight"):  # the backbone's own head is not the network's
        load_official(network, {n: t for n, t in small_file().items() if n != "head.weight"})


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
