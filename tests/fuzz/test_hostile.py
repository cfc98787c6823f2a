"""Files that somebody made to do harm: nothing in them runs, nothing is written outside, memory stays bounded."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import random
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from nnunet_fm.dataset_conversion.readers import hdf5_array, opened_hdf5, read_volume
from nnunet_fm.dataset_conversion.splits import read_split
from nnunet_fm.dataset_conversion.tree import MAX_DEPTH, open_tree
from nnunet_fm.hook.short_form import Plan
from nnunet_fm.inference.predict import predict_folder
from nnunet_fm.io.untrusted import DEPTH, ForeignFileError, plain_name, read_json, read_object, read_text, read_yaml
from nnunet_fm.metrics.label_map import read_label_map
from nnunet_fm.planfile.schema import PlanError
from nnunet_fm.planfile.untrusted import check_plans, read_plans
from nnunet_fm.weights import pickled as pickled_module
from nnunet_fm.weights.add import opened
from nnunet_fm.weights.cache import CACHE_VARIABLE
from nnunet_fm.weights.files import FORBID, FORCE, WeightsFileError, data_only, read_state_dict, read_trained
from nnunet_fm.weights.slim import HEAD, MARK, NOTE, full_state_dict
from tests.fuzz.readers import READERS
from tests.fuzz.seeds import PLAN_KEY, PLANS, UNET, seeds, tarred, zipped
from tests.helpers.datasets import write_image
from tests.helpers.errors import fails
from tests.helpers.tiny_models import write_model

resource = pytest.importorskip("resource", reason="limits of memory are those of Unix")

SPARE = 2**31
"""Bytes of address space that a reader may take beyond what the process has."""

ODD: tuple[Any, ...] = (
    None, True, -1, 0, 10**30, 1e308, float("nan"), "", "..", "../x", "/etc/passwd", "a\0b", "os.system", "ü", [], {},
    [[]], ["x"], {"a": 1}, "torch.hub.load", "<img src=x>", [1, [2]],
)  # fmt: skip


class Ran:
    """Unpickled, it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@contextmanager
def little_memory() -> Iterator[None]:
    """Address space of so much more than there is now; Linux only."""
    statm = Path("/proc/self/statm")
    before = resource.getrlimit(resource.RLIMIT_AS)
    if statm.is_file():
        pages = int(statm.read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + SPARE, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


# Properties


def changed_json(value: Any, chance: random.Random) -> Any:
    """The value with one entry changed, renamed or left out."""
    if isinstance(value, dict) and value and chance.random() < 0.85:
        key, how = chance.choice([*value]), chance.random()
        rest = {k: v for k, v in value.items() if k != key}
        if how < 0.1:
            return rest
        if how < 0.2:
            return {**rest, chance.choice(["x", "", "../y", f"{key}/z"]): value[key]}
        return {**value, key: changed_json(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.7:
        place = chance.randrange(len(value))
        return [*value[:place], changed_json(value[place], chance), *value[place + 1 :]]
    return chance.choice(ODD)


def changed_bytes(content: bytes, chance: random.Random) -> bytes:
    """The file with bytes overwritten, left out, put in or cut off, mostly in its header."""
    changed = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 4, 8])):
        if not changed:
            break
        place = chance.randrange(min(len(changed), chance.choice([64, 400, len(changed)])))
        how = chance.randrange(6)
        if how < 2:
            changed[place] = chance.choice([0, 1, 127, 128, 255, chance.randrange(256)])
        elif how == 2:
            del changed[place : place + chance.randrange(1, 20)]
        elif how == 3:
            changed[place:place] = chance.randbytes(chance.randrange(1, 9))
        elif how == 4:
            word = chance.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0", b"../x"])
            changed[place : place + 4] = word
        else:
            del changed[place:]
    return bytes(changed)


def hostile(reader: str) -> st.SearchStrategy[bytes]:
    """Sound files of a reader with changes, and a few of no sense at all."""

    def change(seed: bytes, chance: random.Random) -> bytes:
        try:
            content = json.loads(seed)
        except ValueError:
            return changed_bytes(seed, chance)
        if chance.random() < 0.2:
            return changed_bytes(seed, chance)
        for _ in range(chance.choice([1, 1, 2, 3])):
            content = changed_json(content, chance)
        return json.dumps(content).encode()

    changed = st.builds(change, st.sampled_from(seeds(reader)), st.randoms(use_true_random=False))
    return st.one_of(changed, changed, changed, st.binary(max_size=200))


def check(reader: str, content: bytes) -> None:
    """The reader ends in a result or a documented error, and writes in its own folder only."""
    here = Path.cwd()
    with TemporaryDirectory() as parent:
        for name in ("inside", "weights", "cwd"):
            Path(parent, name).mkdir()
        os.chdir(Path(parent, "cwd"))
        before = os.environ.get(CACHE_VARIABLE)
        os.environ[CACHE_VARIABLE] = str(Path(parent, "weights"))
        try:
            with little_memory():
                READERS[reader](content, Path(parent, "inside"))
        finally:
            os.chdir(here)
            os.environ.pop(CACHE_VARIABLE)
            os.environ.update({} if before is None else {CACHE_VARIABLE: before})
        outside = [path for path in Path(parent).rglob("*") if not path.is_relative_to(Path(parent, "inside"))]
        assert sorted(path.name for path in outside) == ["cwd", "weights"]


def property_of(reader: str, examples: int) -> None:
    @settings(
        max_examples=examples, derandomize=True, deadline=None, database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )  # fmt: skip
    @given(hostile(reader))
    def holds(content: bytes) -> None:
        check(reader, content)

    holds()


FEW = {"images": 40, "archive": 30, "names": 6}
"""Readers whose examples take longer."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reader", READERS)
def test_a_changed_file_gives_a_result_or_an_error_that_is_documented(reader: str) -> None:
    for seed in seeds(reader):
        check(reader, seed)
    property_of(reader, FEW.get(reader, 100))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reader", READERS)
def test_many_changed_files_do(reader: str) -> None:
    property_of(reader, 30 * FEW.get(reader, 100))


# Text


def test_json_and_yaml_are_bounded(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    for content, expected in (
        ("[" * 100_000, ("file-nesting",)),
        ("[" * (DEPTH + 2) + "]" * (DEPTH + 2), ("file-nesting",)),
        ("{", ("json-invalid",)),
        ("[1]", ("json-object",)),
        ("[" + "[]," * 1_000_000 + "[]]", ("file-entries", "1,000,000")),
        ("{" + ",".join(f'"{i}":{{}}' for i in range(400_000)) + "}", ("file-entries", "1,000,000")),
    ):
        file.write_text(content)
        with fails(*expected):
            read_object(file)
    file.write_bytes(b"\xff\xfe")
    with fails("file-encoding", "a.json", "UTF"):
        read_json(file)
    with fails("file-size", "2", "1"):
        read_text(file, limit=1)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")
    os.mkfifo(tmp_path / "pipe")
    with fails("file-kind"):  # and does not wait for a writer
        read_json(tmp_path / "pipe")
    laughs = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    file.write_text(laughs)
    with fails("file-entries"):
        read_yaml(file)
    for content in ("a: &a [*a]", "[" * 5000, "!!python/object/apply:os.system [exit]", "!!timestamp x", "a: b: c"):
        file.write_text(content)
        with pytest.raises(ForeignFileError):
            read_yaml(file)
    file.write_text("a: &a [1]\nb: *a\n")
    assert read_yaml(file) == {"a": [1], "b": [1]}


def test_json_of_others_has_a_million_entries_at_most(tmp_path: Path) -> None:
    file = tmp_path / "plans.json"
    file.write_text("[" + "[]," * 600_000 + "[]]")
    readers = {
        read_plans: "file-entries",
        Plan.read: "file-entries",
        lambda path: read_split(path, {}): "split-unreadable",
    }
    for reader, code in readers.items():
        with fails(code, "plans.json", "1,000,000"):
            reader(file)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "..\\a", "a\0"])
def test_names_that_are_paths_are_none(name: str) -> None:
    with fails("name-is-path"):
        plain_name(name)
    assert plain_name("Dataset001_Ä b") == "Dataset001_Ä b"


# Plans


HUB = "dynamic_network_architectures.architectures.unet.torch.hub.load"
"""A function that downloads and runs code, under the name of a package that plans may name."""


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"architecture": {**UNET, "network_class_name": "os.system"}}, "'os.system' is not a network"),
        ({"architecture": {**UNET, "network_class_name": "evil_module.Net"}}, "not a network of nnunet-fm"),
        ({"architecture": {**UNET, "network_class_name": HUB}}, "is no network or layer of"),
        ({"architecture": {**UNET, "network_class_name": "nnunet_fm.networks.base.torch.hub.load"}}, "not a network"),
        ({"architecture": {**UNET, "network_class_name": 3}}, "'network_class_name' must be a name"),
        ({"architecture": {**UNET, "arch_kwargs": {"conv_op": "subprocess.run"}}}, "conv_op 'subprocess.run' is no"),
        ({"architecture": {**UNET, "arch_kwargs": {"conv_op": "torch.nn.Module.__init__"}}}, "is no network or layer"),
        ({"architecture": {**UNET, "arch_kwargs": {"nonlin": "torch.nn.functional.relu"}}}, "is no network or layer"),
        ({"data_identifier": "../../x"}, "'../../x' is not a plain name"),
        ({"previous_stage": "/etc"}, "'/etc' is not a plain name"),
        ({"preprocessor_name": "os.system"}, "is not the name of a class"),
        ({"normalization_schemes": ["a.b"]}, "'normalization_schemes' must be"),
        ({"resampling_fn_data": None, "resampling_fn_seg": "x()"}, "resampling_fn_seg"),
    ],
)
def test_plans_name_networks_layers_and_folders_of_their_own(
    change: dict[str, Any], rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil_module.py").write_text("raise SystemExit('it was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    check_plans(PLANS)
    configuration = {**PLANS["configurations"]["3d_fullres"], **change}
    (tmp_path / "plans.json").write_text(json.dumps({**PLANS, "configurations": {"3d_fullres": configuration}}))
    with pytest.raises(PlanError, match=r"plans\.json: configuration '3d_fullres': ") as caught:
        read_plans(tmp_path / "plans.json")
    assert rule in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"dataset_name": "../x"},
        {"plans_name": ".."},
        {"image_reader_writer": "os.system"},
        {"configurations": []},
        {"configurations": {"a/b": {}}},
        {"nnunet_fm": {**PLAN_KEY, "eval_datasets": ["../../x"]}},
        {"nnunet_fm": []},
    ],
)
def test_plans_lead_to_no_other_folder(change: dict[str, Any]) -> None:
    with pytest.raises((PlanError, ValueError)):
        check_plans({**PLANS, **change})


# Weights


def test_no_checkpoint_of_a_foreign_model_runs_code(tmp_path: Path) -> None:
    model = write_model(tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres")
    checkpoint = model / "fold_0" / "checkpoint_final.pth"
    content = torch.load(checkpoint, weights_only=True)  # in memory: the file will be overwritten
    images = tmp_path / "images"
    images.mkdir()
    write_image(images / "a_0000.nii.gz", np.zeros((9, 9, 9), np.float32), (1, 1, 1))
    mark = tmp_path / "it_ran"
    for where in ({"trainer_name": Ran(mark)}, {"more": [Ran(mark)]}):
        torch.save({**content, **where}, checkpoint)
        with fails("weights-refused", "checkpoint_final.pth", "posix.mkdir"):
            predict_folder(model, images, tmp_path / "out", folds=[0], device=torch.device("cpu"))
        with fails("weights-refused"):
            read_state_dict(checkpoint)
    assert not mark.exists() and not (tmp_path / "out").exists()


def test_nothing_runs_while_nnunet_itself_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark, file = tmp_path / "it_ran", tmp_path / "a.pth"
    torch.save({"a": Ran(mark)}, file)
    monkeypatch.setenv(FORBID, "1")
    with data_only(), pytest.raises(Exception, match="mkdir"):
        torch.load(file, weights_only=False)
    assert not mark.exists() and os.environ[FORBID] == "1" and FORCE not in os.environ
    monkeypatch.delenv(FORBID)
    torch.load(file, weights_only=False)
    assert mark.is_dir(), "the file does what it should not"


@pytest.mark.parametrize("content", [b"M", b"J", b"G", b"\x80", b"X\xff", b"\x8a\xff", b"."])
def test_a_pickle_cut_off_after_an_opcode_is_no_checkpoint(content: bytes, tmp_path: Path) -> None:
    """Which error PyTorch's unpickler raises depends on what the opcode wants to read."""
    (tmp_path / "a.pth").write_bytes(content)
    for read in (read_state_dict, read_trained):
        with fails("weights-damaged", "a.pth"):
            read(tmp_path / "a.pth")


def test_a_zip_of_several_disks_is_no_checkpoint(tmp_path: Path) -> None:
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 0, 2)  # of a zip64 archive, which says: two disks
    content = zipped(("a/data.pkl", b"x"))
    end = content.rindex(b"PK\x05\x06")
    (tmp_path / "a.pth").write_bytes(content[:end] + locator + content[end:])
    with pytest.raises(zipfile.BadZipFile, match="multiple disks"):
        zipfile.is_zipfile(tmp_path / "a.pth")
    with fails("weights-cut-off", "a.pth"):
        read_state_dict(tmp_path / "a.pth")


def test_a_member_of_an_archive_has_a_name(tmp_path: Path) -> None:
    content = zipped(("NAME", b"1"), ("model.pth", b"2"))
    (tmp_path / "a.zip").write_bytes(content.replace(b"NAME", b"\0AME"))  # names end at a null byte
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist()[0] == ""
    (tmp_path / "scratch").mkdir()
    with fails("archive-damaged"):
        open_tree(tmp_path / "a.zip", tmp_path / "scratch")
    with opened(tmp_path / "a.zip", {"model.pth"}) as (file, name):
        assert name == "model.pth" and file.read_bytes() == b"2"


def test_tensors_that_are_no_arrays_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    for tensor, kind in (
        (torch.zeros(2, 2).to_sparse(), "torch.sparse_coo"),
        (torch.empty(3, device="meta"), "meta"),
        (torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "quantized"),
    ):
        torch.save({"layer": tensor}, file)
        with fails("weights-refused", "layer", kind):
            read_state_dict(file)
    for content in ({1: torch.ones(1)}, {"a": [torch.ones(1)]}, {}, []):
        torch.save(content, file)
        with fails("weights-content"):
            read_state_dict(file)


def op(*parts: bytes | str | int) -> bytes:
    """Opcodes of a pickle; text as it is pickled, numbers as pickles hold large ones."""
    kinds = {
        str: lambda t: b"X" + struct.pack("<I", len(t)) + t.encode(),
        int: lambda n: b"\x8a\x08" + struct.pack("<q", n),
    }
    return b"".join(part if isinstance(part, bytes) else kinds[type(part)](part) for part in parts)


NUMBER = 2**31
DECLARED = {
    "bytearray": op(b"cbuiltins\nbytearray\n", NUMBER, b"\x85R"),
    "bytearray of Python 2": op(b"c__builtin__\nbytearray\n", NUMBER, b"\x85R"),
    "bytearray from the memo": op(b"cbuiltins\nbytearray\nq\x01\x85h\x01", NUMBER, b"\x85R\x86"),
    "bytearray as a new object": op(b"cbuiltins\nbytearray\n", NUMBER, b"\x85\x81"),
    "Tensor": op(b"ctorch\nTensor\n", NUMBER, b"\x85R"),
    "FloatTensor": op(b"ctorch\nFloatTensor\n", NUMBER, b"\x85R"),
    "UntypedStorage": op(b"ctorch.storage\nUntypedStorage\n", NUMBER, b"\x85R"),
    "array": op(b"cnumpy\nndarray\n", NUMBER, b"\x85\x85\x81"),
    "reconstructed array": op(
        b"cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\n",
        NUMBER,
        b"\x85c_codecs\nencode\n",
        "b",
        "latin1",
        b"\x86R\x87R",
    ),
    "wrapped call": op(
        b"ctorch._tensor\n_rebuild_from_type_v2\n(cbuiltins\nbytearray\nctorch\nTensor\n", NUMBER, b"\x85}tR"
    ),
    "bytes that double": op(
        b"c_codecs\nencode\nq\x01", "ab", "latin1", b"\x86R", *[b"q\x02h\x01h\x02" + op("hex") + b"\x86R"] * 30
    ),
    "storage": op(b"(", "storage", b"ctorch\nFloatStorage\n", "0", "cpu", NUMBER, b"tQ"),
    "quantized": op(
        b"ctorch._utils\n_rebuild_qtensor\n(N",
        0,
        NUMBER,
        b"\x85",
        1,
        b"\x85(ctorch\nper_tensor_affine\n",
        1,
        0,
        b"t\x89NtR",
    ),
    "instructions": b"]" * 1000,
}


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("kind", DECLARED)
def test_a_checkpoint_that_declares_large_objects_is_refused_before_there_is_memory(
    kind: str, older: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pickled_module, "OPERATIONS", 500)
    pickled = b"\x80\x02" + op(b"}", "network_weights", b"}", "x", DECLARED[kind], b"ss.")
    file = tmp_path / "checkpoint_final.pth"
    if older:  # as PyTorch wrote until 1.5: magic number, protocol, system, content
        before = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
        file.write_bytes(b"".join(pickle.dumps(part, 2) for part in before) + pickled + pickle.dumps([], 2))
    else:
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in (("data.pkl", pickled), ("version", b"3"), ("byteorder", b"little")):
                archive.writestr(f"archive/{name}", content)
    for read in (read_trained, read_state_dict):
        tracemalloc.start()
        try:
            with little_memory(), pytest.raises(WeightsFileError, match=file.name) as error:
                read(file)
            assert error.value.code in ("weights-refused", "weights-cut-off")
            assert tracemalloc.get_traced_memory()[1] < 2e8
        finally:
            tracemalloc.stop()


def test_a_large_checkpoint_may_have_a_long_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number for each class and epoch: the larger the file, the more of them."""
    monkeypatch.setattr(pickled_module, "OPERATIONS", 500)
    log = {"dice_per_class_or_region": [[np.float64(epoch + label) for label in range(20)] for epoch in range(30)]}
    file = tmp_path / "checkpoint_final.pth"
    torch.save({"network_weights": {"a": torch.zeros(100_000)}, "logging": log}, file)
    assert read_trained(file)["logging"] == log
    torch.save({"network_weights": {"a": torch.zeros(10)}, "logging": log}, file)
    with fails("weights-refused"):
        read_trained(file)


@pytest.mark.parametrize("zipped", [True, False])
def test_what_trainings_save_needs_none_of_that(tmp_path: Path, zipped: bool) -> None:
    scale = nn.Parameter(torch.ones(3))
    scale.no_weight_decay = True
    content = {
        "network_weights": {"a": torch.rand(2, 3), "half": torch.rand(4).bfloat16(), "view": torch.arange(9)[2:4]},
        "further": [
            np.float64(0.5),
            np.arange(3),
            {1, 2},
            torch.device("cpu"),
            torch.Size([1]),
            b"bytes",
            scale,
            1 + 2j,
        ],
    }
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    read = read_trained(tmp_path / "a.pth")
    assert torch.equal(read["network_weights"]["view"], torch.tensor([2, 3]))


def test_compressed_and_doubled_members_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(4)}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    file = tmp_path / "b.pth"
    file.write_bytes(zipped(*members))
    with fails("weights-refused"):
        read_state_dict(file)
    with pytest.warns(UserWarning, match="Duplicate name"):
        file.write_bytes(zipped(*members, members[0], compression=zipfile.ZIP_STORED))
    with fails("weights-refused"):
        read_state_dict(file)


@pytest.mark.parametrize("name", ["../../x.pth", "/etc/passwd", "..", ""])
def test_a_slim_checkpoint_leads_to_no_file_outside_the_weights_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "weights" / "here"))
    (tmp_path / "x.pth").write_bytes(b"x")
    base = {"files": [name], "sha256": "0", "containers": [], "page": "", "tensors": {"a": "b"}}
    for note in ([base], [{**base, "files": []}], [{"files": 1}], [1], {"a": 1}, "x"):
        for head in (b"", b"\0" * HEAD + MARK):  # as now, and as in older versions
            stored = bytearray(head + json.dumps(note).encode())
            with fails("checkpoint-note"):
                full_state_dict({NOTE: torch.frombuffer(stored, dtype=torch.uint8)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.pth"]


# Archives


def test_archives_out_of_proportion_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnunet_fm.io.untrusted.UNPACKED_FREE", 10_000)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "weights"))
    zeros = bytes(1_000_000)
    bomb = zipped(("model.pth", zeros))
    for name, content, code in (
        ("a.zip", bomb, "archive-size"),
        ("b.zip", zipped(*((f"{i}.zip", zipped(("x", zeros[:100_000]))) for i in range(10))), "archive-damaged"),
        ("c.tar.gz", gzip.compress(tarred(("x", zeros))), "archive-size"),
    ):
        (tmp_path / name).write_bytes(content)
        scratch = tmp_path / f"scratch_{name}"
        scratch.mkdir()
        with fails(code, "100"):
            open_tree(tmp_path / name, scratch)
        assert sum(path.stat().st_size for path in scratch.rglob("*") if path.is_file()) < 1_000_000
    with (
        fails("archive-size", "a.zip", "1,000,000"),
        opened(tmp_path / "a.zip", {"model.pth"}),
    ):
        pass
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 10}))
    (tmp_path / "d.zip").write_bytes(zipped(("x", b"x" * 11)))
    with fails("disk-full", "10"):
        open_tree(tmp_path / "d.zip", tmp_path / "scratch_a.zip")


def test_a_sparse_tar_does_not_fill_the_disk(tmp_path: Path) -> None:
    info = tarfile.TarInfo("sparse")
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"%011o\0" % 2**33  # the real size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(bytes(header) + bytes(1024))
    (tmp_path / "scratch").mkdir()
    with fails("archive-size"):
        open_tree(tmp_path / "a.tar", tmp_path / "scratch")
    assert not [path for path in (tmp_path / "scratch").rglob("*") if path.is_file()]


def test_archives_inside_one_another_end(tmp_path: Path) -> None:
    content = zipped(("x", b"x"))
    for _ in range(MAX_DEPTH + 1):
        content = zipped(("inner.zip", content))
    (tmp_path / "a.zip").write_bytes(content)
    (tmp_path / "scratch").mkdir()
    tree = open_tree(tmp_path / "a.zip", tmp_path / "scratch")
    assert not tree.entries and [problem.rule for problem in tree.problems] == [
        f"more than {MAX_DEPTH} archives inside one another are refused"
    ]


def test_long_names_are_shortened_on_the_disk(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zipped((f"{'x' * 5000}.nii.gz", b"x")))
    (tmp_path / "scratch").mkdir()
    tree = open_tree(tmp_path / "a.zip", tmp_path / "scratch")
    local = tree.local(next(iter(tree.entries)), tmp_path / "out")
    assert local.read_bytes() == b"x" and local.name.endswith("x.nii.gz") and local.parent == tmp_path / "out"


# Images


def nifti(*shape: int) -> bytes:
    """The header of a NIfTI file of this shape, float64, and a few voxels."""
    header = bytearray(348)
    header[:4] = struct.pack("<i", 348)
    header[40:56] = struct.pack("<8h", len(shape), *shape, *[1] * (7 - len(shape)))
    header[70:74] = struct.pack("<2h", 64, 64)
    header[76:108] = struct.pack("<8f", *[1.0] * 8)
    header[108:112] = struct.pack("<f", 352)
    header[344:348] = b"n+1\0"
    return bytes(header) + bytes(68)


def test_headers_that_promise_too_much_are_noticed_before_there_is_memory_for_it(tmp_path: Path) -> None:
    huge = nifti(30_000, 30_000, 30_000)
    mha = b"ObjectType = Image\nNDims = 3\nDimSize = 1000000 1000000 1000000\nElementType = MET_UCHAR\n"
    nrrd = b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 100000 100000 100000\nencoding: raw\n\nabc"
    for name, content in (
        ("a.nii", huge),
        ("a.nii.gz", gzip.compress(huge)),
        ("a.mha", mha + b"ElementDataFile = LOCAL\nabc"),
        ("a.nrrd", nrrd),
    ):
        file = tmp_path / name
        file.write_bytes(content)
        with little_memory(), fails("file-promise"):
            read_volume(file, name)
        with little_memory(), fails("image-damaged"):
            read_label_map(file)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.mha", b"ObjectType = Image\nNDims = 3\nDimSize = 2 2 1\nElementType = MET_UCHAR\nElementDataFile = "),
        ("a.mha", b"ObjectType = Image\nNDims = 3\nDimSize = 2 2 1\nElementType = MET_UCHAR\n\nelementdatafile: "),
        ("a.nrrd", b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 1\nencoding: raw\ndata file: "),
        ("a.nhdr", b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 1\nencoding: raw\ndatafile: ../"),
    ],
)
def test_voxels_are_not_read_from_other_files(name: str, content: bytes, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"1234")
    (tmp_path / name).write_bytes(content + str(secret).encode() + b"\n")
    with fails("image-elsewhere"):
        read_volume(tmp_path / name, name)


def test_hdf5_arrays_are_in_the_file_and_no_larger(tmp_path: Path) -> None:
    file = tmp_path / "a.hdf5"
    (tmp_path / "raw").write_bytes(bytes(100))
    with h5py.File(tmp_path / "other.hdf5", "w") as other:
        other["x"] = np.zeros(4)
    with h5py.File(file, "w") as made:
        made.create_dataset("filled", (10**6, 10**6, 100), np.uint8, chunks=(64, 64, 64), fillvalue=1)
        made.create_dataset("external", (100,), np.uint8, external=[(str(tmp_path / "raw"), 0, 100)])
        made["link"] = h5py.ExternalLink("other.hdf5", "x")
        made["soft"] = h5py.SoftLink("/filled")
        layout = h5py.VirtualLayout((4,), float)
        layout[:] = h5py.VirtualSource("other.hdf5", "x", (4,))
        made.create_virtual_dataset("virtual", layout)
        made["good"] = np.ones(3)
    with opened_hdf5(file, "a") as content:
        for key in ("filled", "external", "link", "soft", "virtual"):
            with fails("hdf5-promise" if key == "filled" else "hdf5-array", key):
                hdf5_array(content, key, "a")
        assert hdf5_array(content, "good", "a")[()].tolist() == [1, 1, 1]


def test_a_tiff_that_promises_too_much(tmp_path: Path) -> None:
    entries = ((256, 4, 2**31), (257, 4, 2**31), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1))
    content = io.BytesIO()
    content.write(b"II*\0" + struct.pack("<IH", 8, len(entries) + 2))
    for tag, kind, value in (*entries, (278, 4, 2**31), (279, 4, 4)):
        content.write(struct.pack("<HHII", tag, kind, 1, value))
    content.write(bytes(4))
    (tmp_path / "a.tif").write_bytes(content.getvalue())
    with little_memory(), fails("image-damaged"):
        read_label_map(tmp_path / "a.tif")
