"""The import hook against a small imitation of nnU-Net's two modules, and the short form of training."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from nnunet_fm.hook import names, short_form, training, wrap
from nnunet_fm.hook.short_form import expand
from nnunet_fm.models.names import UnknownNameError
from tests.helpers.errors import fails

REPOSITORY = Path(__file__).parents[2]

SEARCH = """
def recursive_find_python_class(folder, class_name, current_module, base_folder=None, verbose=False):
    return f"stock {class_name}"
"""
OTHER_SEARCH = """
def recursive_find_python_class(class_name):
    return f"stock {class_name}"
"""
ENTRY = """
import sys
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
def maybe_load_checkpoint(nnunet_trainer, continue_training, validation_only, pretrained_weights_file=None):
    return "stock", continue_training, validation_only, pretrained_weights_file
def run_training_entry():
    print("stock", *sys.argv[1:])
if __name__ == "__main__":
    run_training_entry()
"""


@pytest.fixture
def imitation(tmp_path):
    """Writes a package called nnunetv2 and returns a function that runs code beside it, in a new interpreter."""

    def write(search: str = SEARCH, entry: str = ENTRY):
        for name, text in {"utilities/find_class_by_name": search, "run/run_training": entry}.items():
            path = tmp_path / "nnunetv2" / f"{name}.py"
            path.parent.mkdir(parents=True)
            path.write_text(text)
            (path.parent / "__init__.py").touch()
        (tmp_path / "nnunetv2" / "__init__.py").touch()

        def run(code: str, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
            environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)])} | env
            command = [sys.executable, *(options or ("-c", code))]
            return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)

        return run

    return write


FAKE_RESAMPLING = (
    "import sys, types\n"
    "name = 'nnunet_fm.preprocessing.resampling'\n"
    "fake = sys.modules[name] = types.ModuleType(name)\n"
    "fake.fm_resample_data = None\n"
)
INSTALL = "import nnunet_fm.hook as hook; hook.install()\n"
FIND = "from nnunetv2.utilities.find_class_by_name import recursive_find_python_class as find\n"


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("fm_trainer", "nnunet_fm.trainers"),
        ("fm_trainer_dinov2_b_hqhsam_rein_lora_scratch", "nnunet_fm.trainers"),
        ("FMPlanner", "nnunet_fm.plans.planner"),
        ("FMPlanner_stunet_b_official", "nnunet_fm.plans.planner"),
        ("FMPreprocessor", "nnunet_fm.preprocessing.preprocessor"),
        ("FMPercentileNormalization", "nnunet_fm.preprocessing.normalization"),
        ("FMSymmetricPercentileNormalization", "nnunet_fm.preprocessing.normalization"),
        ("ScaleIntensity", "nnunet_fm.preprocessing.normalization"),
        ("AdvancedNormalization", "nnunet_fm.preprocessing.normalization"),
        ("ScaleIntensityRange", None),
        ("fm_resample_data_to_shape", "nnunet_fm.preprocessing.resampling"),
        ("nnUNetTrainer", None),
        ("ExperimentPlanner", None),
        ("ResEncUNetPlanner", None),
        ("DefaultPreprocessor", None),
        ("CTNormalization", None),
        ("resample_torch_fornnunet", None),
        ("DatasetFingerprintExtractor", None),
        ("LabelManager", None),
    ],
)
def test_names_and_their_homes(name: str, module: str | None) -> None:
    assert names.home(name) == module


def test_our_normalisers_and_resamplers_are_found() -> None:
    from nnunet_fm.preprocessing import normalization, resampling

    assert {name for name in dir(normalization) if names.home(name)} == set(normalization.__all__)
    for module in (normalization, resampling):
        ours = [name for name in dir(module) if names.home(name) == module.__name__]
        assert ours
        for name in ours:
            assert wrap.resolve(name, module.__name__) is getattr(module, name)


def test_wrapped_search_answers_our_names_and_passes_the_rest_on(monkeypatch) -> None:
    calls = []

    def recursive_find_python_class(folder, class_name, current_module, base_folder=None, verbose=False):
        calls.append((folder, class_name, current_module, base_folder, verbose))
        return "stock"

    trainers = ModuleType("nnunet_fm.trainers")
    trainers.fm_trainer_x = object()
    monkeypatch.setitem(sys.modules, "nnunet_fm.trainers", trainers)
    search = ModuleType("nnunetv2.search")
    user = ModuleType("nnunetv2.user")
    stranger = ModuleType("other.user")
    for module in (search, user, stranger):
        module.recursive_find_python_class = recursive_find_python_class
        monkeypatch.setitem(sys.modules, module.__name__, module)

    assert wrap.wrap(search, "recursive_find_python_class") == "wrapped"
    find = search.recursive_find_python_class
    assert user.recursive_find_python_class is find
    assert stranger.recursive_find_python_class is recursive_find_python_class
    assert find("folder", "fm_trainer_x", None) is trainers.fm_trainer_x
    assert find(folder="folder", class_name="fm_trainer_x", current_module=None) is trainers.fm_trainer_x
    assert calls == []
    assert find("folder", "nnUNetTrainer", "module", "base", verbose=True) == "stock"
    assert calls == [("folder", "nnUNetTrainer", "module", "base", True)]
    assert wrap.wrap(search, "recursive_find_python_class") == "wrapped"
    assert search.recursive_find_python_class is find, "wrapped twice"


@pytest.fixture
def search():
    """nnU-Net's own search, wrapped."""
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class as stock

    return wrap._wrap_search(getattr(stock, "__wrapped__", stock))


@pytest.mark.parametrize(
    "name",
    ["ScaleIntensity", "fm_trainer_own", "FMPlanner_own", "FMPreprocessor", "FMOwnNormalization", "fm_resample_own"],
)
@pytest.mark.parametrize("definition", ["class {0}: pass", "def {0}(): pass", "from collections import Counter as {0}"])
def test_users_own_classes_win(tmp_path, search, name: str, definition: str) -> None:
    package = f"own_{name}_{len(definition)}"
    inner = tmp_path / package / "inner"
    inner.mkdir(parents=True)
    for folder in (inner, inner.parent):
        (folder / "__init__.py").touch()
    (inner / "deep.py").write_text(definition.format(name))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        found = search(str(inner.parent), name, package, base_folder=str(tmp_path))
        assert found is getattr(sys.modules[f"{package}.inner.deep"], name)


def test_a_name_in_a_comment_is_no_class_of_a_user(tmp_path, search) -> None:
    from nnunet_fm.preprocessing.normalization import ScaleIntensity

    (tmp_path / "notes.py").write_text("# ScaleIntensity is theirs\nclass ScaleIntensity_2: pass\n")
    assert search(str(tmp_path), "ScaleIntensity", None) is ScaleIntensity


def test_no_module_of_a_user_is_imported_for_other_names_of_ours(tmp_path, search) -> None:
    from nnunet_fm.preprocessing.normalization import ScaleIntensity

    (tmp_path / "broken_module_of_a_user.py").write_text(
        "raise RuntimeError('imported')\nclass ScaleIntensityRange: pass"
    )
    assert search(str(tmp_path), "ScaleIntensity", None) is ScaleIntensity


def test_users_own_trainers_in_external_folders_win(tmp_path, monkeypatch, search) -> None:
    from nnunetv2.utilities import find_objects

    from nnunet_fm.trainers import trainer_class
    from nnunet_fm.trainers.foundation import fm_trainer

    trainer = "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"
    trainer += "class {0}(nnUNetTrainer): where = '{1}'"
    folders = {"a": "# fm_trainer_own", "b": trainer.format("fm_trainer_own", "b"), "c": "# fm_trainer_scratch"}
    for folder, text in folders.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"module_{folder}.py").write_text(text)
    shim = REPOSITORY / "nnunet_fm" / "trainers" / "ext"
    places = [str(shim), *(str(tmp_path / folder) for folder in folders), str(tmp_path / "absent")]
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join(places))
    monkeypatch.setattr(find_objects, "recursive_find_python_class", search)
    find = find_objects.recursive_find_trainer_class_by_name
    assert find("fm_trainer_own").where == "b"
    assert find("fm_trainer") is fm_trainer
    assert find("fm_trainer_scratch") is trainer_class("fm_trainer_scratch")
    with fails("name-unknown", "fm_trainer_owm"):
        find("fm_trainer_owm")


def test_the_shim_lets_our_trainers_read_pretrained_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """nnU-Net's transfer by name would leave the note of a slim checkpoint behind."""
    module: Any = ModuleType("nnunetv2.run.run_training")
    exec(
        "def maybe_load_checkpoint(nnunet_trainer, continue_training, validation_only, pretrained_weights_file=None):\n"
        "    return 'stock'",
        module.__dict__,
    )
    monkeypatch.setitem(sys.modules, module.__name__, module)
    runpy.run_path(str(REPOSITORY / "nnunet_fm" / "trainers" / "ext" / "nnunet_fm_trainers.py"))

    class Ours:
        __module__ = "nnunet_fm.trainers"

        def start_from(self, file: Path) -> str:
            return f"started from {file}"

    assert module.maybe_load_checkpoint(Ours(), False, False, "a.pth") == "started from a.pth"
    assert module.maybe_load_checkpoint(Ours(), True, False) == "stock"
    assert module.maybe_load_checkpoint(object(), False, False, "a.pth") == "stock"


FAKE_NORMALISERS = """
import sys, types
fake = sys.modules["nnunet_fm.preprocessing.normalization"] = types.ModuleType("nnunet_fm.preprocessing.normalization")
fake.ScaleIntensity, fake.AdvancedNormalization, fake.FMSymmetricPercentileNormalization = "one", "two", "three"
"""
SPAWNING = """
import multiprocessing
def search(name):
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class as find
    return find("folder", name, "module")
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(*pool.map(search, ["ScaleIntensity", "AdvancedNormalization", "FMSymmetricPercentileNormalization"]))
"""


def test_normalisers_are_found_in_spawned_workers(imitation, tmp_path) -> None:
    run = imitation()
    (tmp_path / "sitecustomize.py").write_text(FAKE_NORMALISERS + INSTALL)  # in place of the start-up line
    (tmp_path / "script.py").write_text(SPAWNING)
    assert run("", str(tmp_path / "script.py")).stdout == "one two three\n"


def test_unknown_name_of_ours_names_the_nearest() -> None:
    with fails("name-unknown"):
        wrap.resolve("FMPercentilNormalization", "nnunet_fm.preprocessing.normalization")


def test_unknown_names_travel_between_processes() -> None:
    error = UnknownNameError("fm_trainer_stunt_b", ["fm_trainer_stunet_b"], "A hint.")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.nearest) == (str(error), ["fm_trainer_stunet_b"])


def test_hook_wraps_on_import_only(imitation) -> None:
    done = imitation()(
        INSTALL
        + "import sys; print(sorted(n for n in sys.modules if n.startswith(('nnunetv2', 'nnunet_fm'))))\n"
        + FIND
        + "import nnunetv2.utilities.find_class_by_name as m, importlib, inspect\n"
        "print(find('f', 'LabelManager', None), 'nnunet_fm.models' in sys.modules)\n"
        "print(type(m.__loader__).__name__, type(m.__spec__.loader).__name__, 'stock' in inspect.getsource(m))\n"
        "print(hasattr(importlib.reload(m).recursive_find_python_class, '__wrapped__'))\n"
        "hook.install(); print([type(f).__name__ for f in sys.meta_path].count('_Finder'), *hook.status().values())"
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "['nnunet_fm', 'nnunet_fm.hook']",
        "stock LabelManager False",
        "SourceFileLoader SourceFileLoader True",
        "True",
        "1 active wrapped waits for its import waits for its import",
    ]


def test_hook_wraps_what_is_already_imported(imitation) -> None:
    code = (
        "import nnunetv2.run.run_training as user\n"
        + INSTALL
        + "print(*hook.status().values(), hasattr(user.recursive_find_python_class, '__wrapped__'))"
    )
    assert imitation()(code).stdout.strip() == "active wrapped wrapped wrapped True"


def test_another_signature_is_left_alone(imitation) -> None:
    entry = "def run_training_entry(arguments):\n    return arguments\n"
    code = (
        INSTALL
        + FIND
        + "from nnunetv2.run.run_training import run_training_entry as entry\n"
        + "print(find('fm_trainer'), entry(1)); print(*hook.status().values(), sep='\\n')"
    )
    done = imitation(OTHER_SEARCH, entry)(code)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "stock fm_trainer 1",
        "active",
        "left alone: this nnU-Net gives it the parameters (class_name)",
        "left alone: this nnU-Net gives it the parameters (arguments)",
        "left alone: this nnU-Net has no such function",
    ]


def test_pretrained_weights_of_other_trainers_take_the_way_of_nnunet(imitation) -> None:
    code = (
        INSTALL
        + "from nnunetv2.run.run_training import maybe_load_checkpoint as load\n"
        + "class Ours:\n    __module__ = 'nnunet_fm.trainers'\n    start_from = staticmethod(print)\n"
        + "class Theirs:\n    start_from = 1\n"
        + "class Derived(Ours):\n    __module__ = 'theirs'\n"
        + "for trainer in (Theirs(), Ours(), Derived()):\n    print(load(trainer, False, False, 'a/b'))\n"
        + "print(load(Ours(), True, False, 'a')); print(load(Ours(), False, False))"
    )
    assert imitation()(code).stdout.splitlines() == [
        "('stock', False, False, 'a/b')", "a/b", "None", "a/b", "None", "('stock', True, False, 'a')",
        "('stock', False, False, None)",
    ]  # fmt: skip


def test_a_missing_function_is_left_alone(imitation) -> None:
    code = INSTALL + "import nnunetv2.utilities.find_class_by_name; print(*hook.status().values(), sep='\\n')"
    assert "left alone: this nnU-Net has no such function" in imitation("")(code).stdout


def test_an_import_error_of_nnunet_stays_its_own(imitation) -> None:
    done = imitation("import does_not_exist")(INSTALL + FIND)
    assert "No module named 'does_not_exist'" in done.stderr
    assert "nnunet_fm" not in done.stderr.splitlines()[-1]


def test_the_switch(imitation) -> None:
    code = INSTALL + FIND + "print(find('f', 'fm_trainer', None), *hook.status().values(), sep='\\n')"
    done = imitation()(code, NNUNET_FM_HOOK="0")
    assert done.stdout.splitlines() == [
        "stock fm_trainer",
        "off (NNUNET_FM_HOOK=0)",
        "as nnU-Net made it",
        "as nnU-Net made it",
        "as nnU-Net made it",
    ]


def test_modules_run_as_scripts(imitation, tmp_path) -> None:
    """``python -m`` asks the loader for code, which the stand-in passes on."""
    run = imitation()
    (tmp_path / "sitecustomize.py").write_text(INSTALL)
    assert run("", "-m", "nnunetv2.run.run_training", "1", "2d").stdout == "stock 1 2d\n"


POLICY = "import os; print(os.environ.get('OMP_WAIT_POLICY'))"


@pytest.mark.parametrize(
    ("variables", "before", "policy"),
    [
        ({}, "import nnunetv2", "PASSIVE"),
        ({}, "import json", "None"),  # no process of nnU-Net
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "import nnunetv2", "ACTIVE"),
        ({"GOMP_SPINCOUNT": "1000"}, "import nnunetv2", "None"),
        ({"KMP_BLOCKTIME": "200"}, "import nnunetv2", "None"),
        ({"NNUNET_FM_HOOK": "0"}, "import nnunetv2", "None"),
        ({}, "import sys; sys.modules['torch'] = sys; import nnunetv2", "None"),  # its threads know how to wait
    ],
)
@pytest.mark.parametrize("running", [1, 99])
def test_threads_of_nnunet_sleep_on_a_crowded_machine_unless_the_user_says(
    imitation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    running: int,
    variables: dict[str, str],
    before: str,
    policy: str,
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY")
    (tmp_path / "stat").write_text(f"cpu  1 2 3\nprocs_running {running}\nprocs_blocked 0\n")
    here = f"import pathlib, nnunet_fm.cpu.limits as l\nl.STATISTICS = pathlib.Path({str(tmp_path / 'stat')!r})\n"
    found = imitation()(f"{here}{INSTALL}{before}\n{POLICY}", **variables).stdout.strip()
    assert found == (policy if running > 1 or policy != "PASSIVE" else "None")


def test_nnunet_counts_the_cores_that_it_may_use(imitation) -> None:
    """Its commands compute with ``multiprocessing.cpu_count()`` threads, whatever affinity and limits say."""
    entry = (
        "import multiprocessing\ndef run_training_entry():\n"
        "    print(multiprocessing.cpu_count(), multiprocessing.get_context('spawn').get_start_method())\n"
    )
    code = INSTALL + (
        "import multiprocessing as m, nnunet_fm.cpu.limits as l, nnunetv2.run.run_training as r\n"
        "m.cpu_count = lambda: 64; l.usable_cores = lambda: 4\nr.run_training_entry(); print(m.cpu_count())\n"
    )
    run = imitation(entry=entry)
    free, chosen = run(code, OMP_NUM_THREADS="8"), run(code, OMP_NUM_THREADS="2,1")
    assert (free.stdout, free.stderr) == ("4 spawn\n64\n", "")
    assert chosen.stdout.startswith("2 spawn") and "2 of 4 cores, as OMP_NUM_THREADS says" in chosen.stderr


def test_other_hooks_may_search_again(imitation) -> None:
    """Another finder that asks every finder in turn, as some debuggers' do, must not loop with this one."""
    code = (
        "import sys, nnunet_fm.hook as hook\n"
        "class Other:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.startswith('nnunetv2'):\n"
        "            found = (f.find_spec(name, path, target) for f in sys.meta_path if f is not self)\n"
        "            return next((s for s in found if s is not None), None)\n"
        "hook.install(); sys.meta_path.insert(1, Other())\n" + FIND + "print(hasattr(find, '__wrapped__'))\n"
    )
    done = imitation()(code)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_an_unknown_name_ends_a_command_with_one_line(imitation) -> None:
    done = imitation()(INSTALL + FIND + FAKE_RESAMPLING + "find('folder', 'fm_resample_dta', None)")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: 'fm_resample_dta' is not a name")
    assert "fm_resample_data" in line


def test_other_errors_keep_their_traceback(imitation) -> None:
    code = (
        INSTALL
        + FIND
        + FAKE_RESAMPLING
        + "try:\n    find('folder', 'fm_resample_dta', None)\nexcept AttributeError:\n    1 / 0"
    )
    assert "Traceback" in imitation()(code).stderr


# short form -----------------------------------------------------------------------------------------------------------


def write_plans(folder: Path, name: str, configurations=("3d_fullres",), **key: str) -> None:
    content = {"plans_name": name, "configurations": {c: {} for c in configurations}}
    if key:
        content["nnunet_fm"] = {"version": 1, "variant": "mission", **key}
    (folder / f"{name}.json").write_text(json.dumps(content))


@pytest.fixture
def dataset(tmp_path, monkeypatch) -> Path:
    """Folder of a preprocessed dataset with stock plans and files that are no plans."""
    folder = tmp_path / "Dataset501_Aorta"
    folder.mkdir()
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    monkeypatch.delenv("nnUNet_raw", raising=False)
    monkeypatch.delenv("nnUNet_results", raising=False)
    write_plans(folder, "nnUNetPlans", ("2d", "3d_fullres", "3d_lowres"))
    (folder / "dataset.json").write_text("{}")
    (folder / "splits_final.json").write_text("[]")
    (folder / "dataset_fingerprint.json").write_text("not even JSON")
    return folder


@pytest.mark.parametrize("identifier", ["501", "Dataset501_Aorta"])
def test_the_one_plan_that_fits(dataset, identifier) -> None:
    write_plans(dataset, "FMPlans_stunet_b", model="stunet_b")
    assert expand([identifier, "fm_trainer", "0"]) == [
        *(identifier, "3d_fullres", "0"),
        *("-tr", "fm_trainer", "-p", "FMPlans_stunet_b"),
    ]


def test_automatic_plans_count(dataset) -> None:
    write_plans(dataset, "FMPlans", ("2d",), model="dinov2_b", head="linear")
    assert expand(["501", "fm_trainer", "all"]) == ["501", "2d", "all", "-tr", "fm_trainer", "-p", "FMPlans"]


def test_options_are_kept(dataset) -> None:
    write_plans(dataset, "FMPlans_stunet_b", model="stunet_b")
    given = ["--c", "501", "-device", "cpu", "fm_trainer_scratch", "--npz", "0", "-num_gpus=2", "--new_flag"]
    expanded = expand(given)
    assert expanded[:7] == ["501", "3d_fullres", "0", "-tr", "fm_trainer_scratch", "-p", "FMPlans_stunet_b"]
    assert sorted(expanded[7:]) == sorted(["--c", "-device", "cpu", "--npz", "-num_gpus", "2", "--new_flag"])
    assert expanded[expanded.index("-device") + 1] == "cpu"


def test_pinned_names_take_the_plans_of_their_model(dataset) -> None:
    write_plans(dataset, "FMPlans_stunet_s", model="stunet_s")
    write_plans(dataset, "FMPlans_stunet_b", model="stunet_b")
    assert expand(["501", "fm_trainer_stunet_b", "0"])[-3:] == ["fm_trainer_stunet_b", "-p", "FMPlans_stunet_b"]


def test_several_plans_list_the_commands(dataset) -> None:
    write_plans(dataset, "FMPlans_stunet_b", model="stunet_b")
    write_plans(dataset, "FMPlans_stunet_b_official", model="stunet_b")
    with fails("plans-several") as error:
        expand(["501", "fm_trainer", "0", "--npz"])
    assert str(error.value).splitlines()[1:] == [
        "  nnUNetv2_train 501 3d_fullres 0 -tr fm_trainer -p FMPlans_stunet_b --npz",
        "  nnUNetv2_train 501 3d_fullres 0 -tr fm_trainer -p FMPlans_stunet_b_official --npz",
    ]


def test_plans_with_the_named_parts_go_first(dataset, monkeypatch) -> None:
    from nnunet_fm.models.names import Grammar, Parts

    parts = Parts(("linear", "hqhsam"), ("freeze", "rein"))
    monkeypatch.setattr(short_form, "grammar", lambda: Grammar({"dinov2_b": parts, "stunet_b": Parts((), ("freeze",))}))
    write_plans(dataset, "FMPlans_dinov2_b", ("2d",), model="dinov2_b", head="hqhsam", adapter="rein")
    write_plans(dataset, "FMPlans_stunet_b", model="stunet_b", adapter="freeze")
    # the trainer overrides the head, which STU-Net cannot have
    assert expand(["501", "fm_trainer_linear", "0"])[-1] == "FMPlans_dinov2_b"
    assert expand(["501", "fm_trainer_freeze", "0"])[-1] == "FMPlans_stunet_b"
    write_plans(dataset, "FMPlans_dinov2_b_linear", ("2d",), model="dinov2_b", head="linear", adapter="rein")
    assert expand(["501", "fm_trainer_dinov2_b_linear", "0"])[-1] == "FMPlans_dinov2_b_linear"
    assert expand(["501", "fm_trainer_dinov2_b_hqhsam", "0"])[-1] == "FMPlans_dinov2_b"


@pytest.mark.parametrize(
    ("name", "planner"),
    [
        ("fm_trainer", "FMPlanner_<model>"),
        ("fm_trainer_stunet_b", "FMPlanner_stunet_b"),
        ("fm_trainer_stunet_b_scratch", "FMPlanner_stunet_b"),
    ],
)
def test_without_plans_the_planning_command_is_named(dataset, name, planner) -> None:
    with fails("plans-missing", f"nnUNetv2_plan_and_preprocess -d 501 -pl {planner}"):
        expand(["Dataset501_Aorta", name, "0"])


def test_given_plans_are_used(dataset) -> None:
    write_plans(dataset, "FMPlans_stunet_b", model="stunet_b")
    write_plans(dataset, "Mine", model="stunet_s")
    mine = ["501", "3d_fullres", "0", "-tr", "fm_trainer", "-p", "Mine"]
    assert expand(["501", "fm_trainer", "0", "-p", "Mine"]) == mine
    # a pinned trainer brings the model to stock plans
    pinned = ["501", "fm_trainer_stunet_b", "0", "-p", "nnUNetPlans"]
    assert expand(pinned)[:2] == ["501", "3d_fullres"]
    with fails("plan-model"):
        expand(["501", "fm_trainer", "0", "-p", "nnUNetPlans"])
    with fails("plans-missing", "FMPlans_stunet_b", "nnUNetPlans"):
        expand(["501", "fm_trainer", "0", "-p", "Missing"])
    write_plans(dataset, "Only2d", ("2d", "2d_b"))
    with fails("configuration-missing", "3d_fullres"):
        expand(["501", "fm_trainer_stunet_b", "0", "-p", "Only2d"])


def test_a_real_configuration_of_that_name_wins(dataset) -> None:
    write_plans(dataset, "FMPlans_stunet_b", model="stunet_b")
    write_plans(dataset, "Mine", ("3d_fullres", "fm_trainer"))
    arguments = ["501", "fm_trainer", "0", "-p", "Mine"]
    assert expand(arguments) == arguments


@pytest.mark.parametrize(
    "arguments",
    [
        ["501", "3d_fullres", "0", "-tr", "fm_trainer", "-p", "FMPlans_stunet_b"],
        ["501", "3d_fullres", "0", "-t", "fm_trainer"],
        ["501", "3d_fullres", "0"],
        ["501", "fm_trainer"],
        ["-h"],
        [],
    ],
)
def test_stock_arguments_are_untouched(arguments, monkeypatch) -> None:
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    assert expand(arguments) == arguments


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("fmtrainer_stunet_b", "fm_trainer_stunet_b"),
        ("fm-trainer", "fm_trainer"),
        ("fm_trianer_dinov2_s", "fm_trainer_dinov2_s"),
        ("FM_trainer", "fm_trainer"),
        ("trainer_stunet_b", "fm_trainer_stunet_b"),
        ("FMPlaner_stunet_b", "FMPlanner_stunet_b"),
        ("fmplanner", "FMPlanner"),
    ],
)
def test_a_name_that_is_nearly_ours_is_answered_with_the_nearest(name: str, nearest: str) -> None:
    module = ModuleType("nnunetv2.search")
    module.recursive_find_python_class = lambda folder, class_name, current_module: None
    wrap.wrap(module, "recursive_find_python_class")
    with fails("name-unknown", name) as error:
        module.recursive_find_python_class("folder", name, None)
    assert error.value.nearest[0] == nearest


@pytest.mark.parametrize("name", ["nnUNetTrainer_x", "MyTrainer", "FancyTrainer", "FMPlans_stunet_b", "3d_fullres"])
def test_names_of_others_are_left_to_nnunet(name: str) -> None:
    assert not names.resembles_ours(name)


def entry(run: Callable[[], object]) -> Callable[[], object]:
    """nnU-Net's training entry point as the hook wraps it."""
    module = ModuleType("nnunetv2.entry")
    module.run_training_entry = lambda: run()
    wrap.wrap(module, "run_training_entry")
    return module.run_training_entry


def test_stock_trainings_go_nnunets_way(monkeypatch) -> None:
    monkeypatch.setattr(training, "run", lambda run: pytest.fail("not ours"))
    monkeypatch.setattr(sys, "argv", ["nnUNetv2_train", "501", "3d_fullres", "0", "-tr", "nnUNetTrainerNoDA"])
    assert entry(lambda: "stock")() == "stock"


LONG = "501 3d_fullres 0 -tr fm_trainer -p FMPlans_stunet_b"


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (LONG, f"{LONG} --c"),
        (f"{LONG} --npz --c", f"{LONG} --npz --c"),
        (f"{LONG} --val", f"{LONG} --val"),
        ("501 fm_trainer 0 -pretrained_weights a.pth -device cpu", f"{LONG} -device cpu --c{training.EARLY}"),
    ],
)
def test_an_interrupted_training_says_how_to_go_on(dataset, monkeypatch, capsys, arguments: str, command: str) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    write_plans(dataset, "FMPlans_stunet_b", model="stunet_b")
    monkeypatch.setattr(sys, "argv", ["nnUNetv2_train", *arguments.split()])
    with pytest.raises(SystemExit) as stop:
        entry(interrupted)()
    assert stop.value.code == 130
    assert capsys.readouterr().err.strip() == f"nnUNetv2_train: interrupted; go on with: nnUNetv2_train {command}"


def test_more_gpus_than_there_are(monkeypatch, capsys) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr(sys, "argv", ["nnUNetv2_train", *LONG.split(), "-num_gpus", "2"])
    with pytest.raises(SystemExit) as stop:
        entry(lambda: pytest.fail("nnU-Net was called"))()
    assert stop.value.code == 2 and "-num_gpus 2: PyTorch finds 1 GPU on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["501", "fm_trainer", "0", "-tr", "nnUNetTrainer"], "-tr nnUNetTrainer is given as well"),
        (["501", "fm_trainer_stunt_b", "0"], "fm_trainer_stunet_b"),
        (["501", "fmtrainer_stunet_b", "0"], "Nearest legal names: fm_trainer_stunet_b"),
        (["502", "fm_trainer", "0"], "there is no dataset 502"),
        (["aorta", "fm_trainer", "0"], "'aorta' is neither the number of a dataset nor its name"),
    ],
)
def test_bad_usage_exits_with_code_two(dataset, monkeypatch, capsys, arguments, message) -> None:
    write_plans(dataset, "FMPlans_stunet_b", model="stunet_b")
    monkeypatch.setattr(sys, "argv", ["nnUNetv2_train", *arguments])
    with pytest.raises(SystemExit) as stop:
        short_form.run(lambda: pytest.fail("nnU-Net was called"))
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("nnUNetv2_train: error: ")
    assert message in line


def test_missing_folder_variable_and_broken_plans(dataset, monkeypatch) -> None:
    (dataset / "FMPlans_broken.json").write_text("{")
    with fails("json-invalid", "FMPlans_broken.json"):
        expand(["501", "fm_trainer", "0"])
    monkeypatch.delenv("nnUNet_preprocessed")
    with fails("dataset-missing", "nnUNet_preprocessed"):
        expand(["501", "fm_trainer", "0"])


def test_entry_sees_the_long_form_and_argv_is_restored(dataset, monkeypatch, capsys) -> None:
    write_plans(dataset, "FMPlans_stunet_b", model="stunet_b")
    given = ["/somewhere/nnUNetv2_train", "501", "fm_trainer", "0"]
    long = ["501", "3d_fullres", "0", "-tr", "fm_trainer", "-p", "FMPlans_stunet_b"]
    seen: list[list[str]] = []
    monkeypatch.setattr(sys, "argv", given)
    module = ModuleType("nnunetv2.entry")
    module.run_training_entry = lambda: seen.append(list(sys.argv))
    assert wrap.wrap(module, "run_training_entry") == "wrapped"
    module.run_training_entry()
    assert seen == [[given[0], *long]]
    assert sys.argv is given
    assert capsys.readouterr().out == f"nnUNetv2_train {' '.join(long)}\n"


def test_stock_options_are_known(monkeypatch) -> None:
    """The short form's idea of nnU-Net's options, against nnU-Net's parser."""
    from nnunetv2.run import run_training

    parsers: list[argparse.ArgumentParser] = []

    def parse_args(self: argparse.ArgumentParser) -> None:
        parsers.append(self)
        raise SystemExit

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr(sys, "argv", ["nnUNetv2_train"])
    with pytest.raises(SystemExit):
        run_training.run_training_entry()
    options = {option: action.nargs for action in parsers[0]._actions for option in action.option_strings}
    assert {o for o, nargs in options.items() if nargs is None} == set(short_form.VALUE_OPTIONS)
    assert {o for o, nargs in options.items() if nargs == 0} == {*short_form.FLAGS, "-h", "--help"}
