"""Study files: their schema, and the runs and jobs that they stand for; those of docs/studies on generated datasets."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

from nnunet_fm.reporting.published import dataset_key, published_cells
from nnunet_fm.studies.datasets import find_dataset
from nnunet_fm.studies.expand import Expansion, expand
from nnunet_fm.studies.jobs import make_jobs
from nnunet_fm.studies.prepare import Prepared, find_machine, prepare, threads
from nnunet_fm.studies.schema import Study, StudyError, read_study
from tests.helpers.datasets import write_files
from tests.helpers.errors import fails

STUDIES = Path(__file__).parents[2] / "docs" / "studies"
EXAMPLE = Path(__file__).parents[2] / "nnunet_fm" / "studies" / "example.yaml"
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
MINIMAL = {"name": "s", "datasets": ["A"], "models": ["stunet_s"]}


def study(**changes: object) -> Study:
    return Study(**{**MINIMAL, **changes})


def faults(tmp_path: Path, **changes: object) -> str:
    """What the command says of a study file with these keys."""
    content = {key: value for key, value in {**MINIMAL, **changes}.items() if value is not None}
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(StudyError) as caught:
        read_study(file)
    return str(caught.value)


def expanded(tmp_path: Path, **changes: object) -> Expansion:
    return expand(study(**changes), tmp_path / "raw", tmp_path / "results")


def labels(expansion: Expansion) -> list[str]:
    return list(dict.fromkeys(t.run.label for t in expansion.trainings.values()))


# Schema


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"modles": ["stunet_s"]}, "'modles' is no key here: did you mean 'models'?"),
        ({"budget": {"iteration": 3}}, "budget: 'iteration' is no key here: did you mean 'iterations'?"),
        ({"models": [{"model": "stunet_s", "heads": "x"}]}, "models[0]: 'heads' is no key here: did you mean 'head'?"),
        ({"models": ["stunet_x"]}, "did you mean stunet_s"),
        ({"models": ["freeze"]}, "'freeze' names no model"),
        ({"models": [{"model": "stunet_s", "adapter": "rein"}]}, "'stunet_s' has no adapter 'rein'; legal: full"),
        ({"models": [{"model": "sam_b_linear", "head": "hsam"}]}, "names a head, and head: hsam is given as well"),
        ({"models": [{"model": "stunet_s", "weights": "x"}]}, "known: stunet_small_totalsegmentator"),
        ({"set": {"recipe.los": "ce"}}, "did you mean 'recipe.loss'?"),
        ({"set": {"recipe.loss": "focal"}}, "set: recipe.loss: Input should be 'nnunet', 'dice_ce' or 'ce'"),
        ({"set": {"recipe.seed": 3}}, "'recipe.seed' is set by seeds"),
        ({"budget": {"iterations": 3, "epochs": 3}}, "give one"),
        ({"budget": {"minutes": 5}}, "stock nnU-Net cannot be given minutes"),
        ({"folds": ["first"]}, "folds[0]"),
        ({"seeds": [1, 1]}, "seeds holds something twice"),
        ({"generalise": True}, "generalise and adapt need an anatomy with several datasets"),
        ({"anatomies": {"a": ["B"]}}, "either datasets, or anatomies"),
        ({"evaluate": {"metrics": ["F1"]}}, "'F1' is no metric: choose from Dice"),
        ({"controls": {"resenc": "S"}}, "controls.resenc"),
        ({"models": None}, "models: field required"),
        ({"name": "a/b"}, "name: "),
    ],
)
def test_a_fault_is_named_with_its_cure(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    assert said.lower() in faults(tmp_path, **changes).lower()


def test_files_that_are_no_study(tmp_path: Path) -> None:
    with fails("study-missing"):
        read_study(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("[1, 2]")
    with fails("study-form"):
        read_study(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("name: [")
    with fails("yaml-invalid", "YAML"):
        read_study(tmp_path / "broken.yaml")


def test_short_forms() -> None:
    found = study(datasets=[501], controls=False, train_cases=[3, "all"], folds=[0, "all"])
    assert found.groups == {"501": ["501"]} and found.folds == ["0", "all"] and found.train_cases == [3, None]
    assert not (found.controls.stock or found.controls.resenc or found.controls.scratch)
    assert study(controls={"resenc": False}).controls.resenc is None
    assert study(controls={"resenc": True}).controls.resenc == "M"
    model = study(models=["dinov2_b_linear_full_scratch"]).models[0]
    assert (model.model, model.head, model.adapter, model.scratch) == ("dinov2_b", "linear", "full", True)


def test_example_is_a_study_and_names_every_key() -> None:
    assert read_study(EXAMPLE).budget.iterations == 20000
    text = EXAMPLE.read_text()
    assert not [key for key in Study.model_fields if not re.search(rf"^(# )?{key}:", text, re.MULTILINE)]


# Datasets


def test_datasets_by_number_and_name(tmp_path: Path) -> None:
    for number, name in ((1, "Aorta"), (2, "Größe_β"), (3, "Twice"), (4, "Twice")):
        write_files(tmp_path, name, number)
    assert find_dataset("1", tmp_path).name == find_dataset("Aorta", tmp_path).name == "Dataset001_Aorta"
    assert find_dataset("Dataset002_Größe_β", tmp_path).short == "Größe_β"
    missing = find_dataset("Liver", tmp_path)
    assert missing.folder is None and missing.short == missing.name == "Liver" and missing.json == {}
    with fails("dataset-ambiguous", "Dataset003_Twice", "Dataset004_Twice"):
        find_dataset("Twice", tmp_path)


def test_missing_datasets_are_named_with_the_command_that_makes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = prepared(tmp_path, monkeypatch, study(datasets=["HCP_T2", "Nothing", 17, "Hippocampus"], variant="thesis"))
    assert found.missing["HCP_T2"] == "nnunet-fm convert hcp SOURCE -d ID --domain t2 --split thesis --thesis"
    assert found.missing["Nothing"] == "put it into nnUNet_raw as DatasetID_Nothing"
    assert "Dataset017" in found.missing["17"] and "unpack" in found.missing["Hippocampus"]


# Expansion


def test_products_controls_and_labels(tmp_path: Path) -> None:
    found = expanded(
        tmp_path,
        models=["sam_b", "vanilla_unet2d"],
        heads=["linear", "hsam"],
        adapters=["freeze", "rein"],
        folds=[0, 1],
    )
    models = ["sam_b_linear_freeze", "sam_b_linear_rein", "sam_b_hsam_freeze", "sam_b_hsam_rein", "vanilla_unet2d"]
    twins = ["sam_b_linear from scratch", "sam_b_hsam from scratch"]
    assert labels(found) == [*models, *twins, "nnU-Net", "nnU-Net ResEnc M"]
    assert Counter(t.run.control for t in found.trainings.values()) == {None: 10, "scratch": 4, "stock": 2, "resenc": 2}
    twin = next(t for t in found.trainings.values() if t.run.label == twins[0])
    assert twin.run.trainer == "fm_trainer_scratch" and twin.run.adapter == "full"
    assert twin.plan == next(t for t in found.trainings.values() if t.run.label == models[0]).plan


def test_stock_controls_are_the_real_trainer_unless_something_is_changed(tmp_path: Path) -> None:
    def stock(**changes: object) -> set[tuple[str, str, int | None]]:
        trainings = expanded(tmp_path, **changes).trainings.values()
        return {(t.run.trainer, t.run.plans, t.run.seed) for t in trainings if t.run.control in ("stock", "resenc")}

    assert stock() == {("nnUNetTrainer", "nnUNetPlans", None), ("nnUNetTrainer", "nnUNetResEncUNetMPlans", None)}
    changed = ({"budget": {"iterations": 9}}, {"seeds": [1, 2]}, {"train_cases": [3]}, {"controls": {"iterations": 5}})
    for changes in changed:
        found = stock(**changes)
        assert {trainer for trainer, *_ in found} == {"fm_trainer_stock"} and None not in {s for *_, s in found}
    fitted = {(plans, seed) for _, plans, seed in stock(gpu_memory_target=4)}
    assert fitted == {("nnUNetPlans_4GB", None), ("nnUNetResEncUNetMPlans_4GB", None)}


def test_both_dimensions_have_controls_of_their_own(tmp_path: Path) -> None:
    found = expanded(tmp_path, models=["stunet_s", "vanilla_unet2d"], controls={"scratch": False})
    assert labels(found)[2:] == [
        "nnU-Net 2d",
        "nnU-Net 3d_fullres",
        "nnU-Net ResEnc M 2d",
        "nnU-Net ResEnc M 3d_fullres",
    ]
    found = expanded(tmp_path, models=["stunet_s", "vanilla_unet2d"], controls={"configurations": ["2d"]})
    assert labels(found)[3:] == ["nnU-Net", "nnU-Net ResEnc M"]
    assert {t.run.configuration for t in found.trainings.values() if t.card is None} == {"2d"}


def test_ids_are_unique_legal_and_stable(tmp_path: Path) -> None:
    write_files(tmp_path / "raw", "Größe β", 7)
    changes = {"datasets": ["Größe β"], "seeds": [1, 2], "train_cases": [3, "all"], "folds": [0, 1]}
    first = expanded(tmp_path, **changes)
    again = expanded(tmp_path, **changes)
    wider = expanded(tmp_path, **{**changes, "models": ["vanilla_unet3d", "stunet_s"], "name": "another"})
    assert list(first.trainings) == list(again.trainings) and set(first.trainings) < set(wider.trainings)
    jobs, more = make_jobs(first), make_jobs(wider)
    for identifier in [*first.trainings, *jobs]:
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,200}", identifier)
    trains = {job.id for job in jobs.values() if job.rule == "train"}
    assert trains < set(more)
    other = expanded(tmp_path, **{**changes, "budget": {"iterations": 5}})
    assert not set(first.trainings) & set(other.trainings)


def test_every_job_comes_after_what_it_needs(tmp_path: Path) -> None:
    changes = {"anatomies": {"a": ["A", "B"]}, "adapt": [{"method": "selftraining"}], "generalise": True}
    jobs = make_jobs(expanded(tmp_path, datasets=[], **changes))
    seen: set[str] = set()
    for job in jobs.values():
        assert set(job.needs) <= seen
        seen.add(job.id)
    adapt = next(job for job in jobs.values() if job.rule == "adapt")
    assert [jobs[needed].rule for needed in adapt.needs] == ["train"]
    assert [jobs[needed].rule for needed in next(j for j in jobs.values() if j.rule == "report").needs].count(
        "evaluate"
    ) == sum(job.rule == "evaluate" for job in jobs.values())


def test_plans_that_share_data_are_preprocessed_once(tmp_path: Path) -> None:
    found = expanded(tmp_path, models=["sam_b", "mae_b", "vanilla_unet2d"], seeds=[1, 2], budget={"iterations": 5})
    jobs = [job for job in make_jobs(found).values() if job.rule == "preprocess"]
    assert len(jobs) == 2  # ours, and stock's with its residual encoder
    assert sorted(len(job.what["plans"]) for job in jobs) == [4, 6]


def test_domains(tmp_path: Path) -> None:
    changes = {"datasets": [], "anatomies": {"x": ["A", "B"], "y": ["C", "D"]}, "generalise": True, "controls": False}
    models = ["stunet_s", {"model": "vanilla_unet3d", "skip": ["B"]}]
    found = expanded(tmp_path, **changes, models=models, sources=["A", "D"], adapt=[{"method": "entropymin"}])
    pairs = {
        (t.run.label, t.run.source or t.run.dataset, target) for t in found.trainings.values() for target in t.targets
    }
    adapted = "entropy minimisation"
    assert pairs == {
        *(("stunet_s", a, b) for a, b in ("AA", "AB", "DD", "DC")),
        *(("vanilla_unet3d", a, b) for a, b in ("AA", "DD", "DC")),
        *((f"stunet_s, {adapted}", a, b) for a, b in ("AB", "DC")),
        (f"vanilla_unet3d, {adapted}", "D", "C"),
    }
    run = next(t for t in found.trainings.values() if t.run.method).run
    assert run.trainer == "fm_trainer_entropymin" and run.source == "A" and run.dataset == "B" and run.anatomy == "x"


def test_domains_must_have_the_same_labels(tmp_path: Path) -> None:
    write_files(tmp_path / "raw", "A", 1)
    write_files(tmp_path / "raw", "B", 2, {"background": 0, "two": 1})
    changes = {"datasets": [], "anatomies": {"x": ["A", "B"]}}
    assert expanded(tmp_path, **changes).trainings
    with fails("labels-differ", "Dataset002_B", "one"):
        expanded(tmp_path, **changes, generalise=True)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"models": ["stunet_s", "stunet_s"]}, ("label-twice", "stunet_s")),
        ({"models": ["stunet_s"], "adapters": ["rein"]}, ("part-unknown", "stunet_s", "rein")),
        ({"models": ["resnet18"], "heads": ["hqhsam"]}, ("part-unknown", "hqhsam", "resnet18_unetdec_small")),
        ({"models": [{"model": "stunet_s", "skip": ["A"]}]}, ("trainings-none",)),
        ({"models": [{"model": "stunet_s", "skip": ["Z"]}]}, ("dataset-missing", "'Z'")),
        ({"models": ["stunet_s", {"model": "stunet_s", "label": "again"}]}, ("training-twice", "again", "stunet_s")),
        ({"datasets": ["A", "Dataset001_A"]}, ("dataset-twice", "Dataset001_A")),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    tmp_path: Path, changes: dict[str, object], expected: tuple[str, ...]
) -> None:
    if "Dataset001_A" in changes.get("datasets", ()):
        write_files(tmp_path / "raw", "A", 1)
    with fails(*expected):
        expanded(tmp_path, **changes)


# Preparation


def prepared(root: Path, monkeypatch: pytest.MonkeyPatch, content: Study) -> Prepared:
    for name in FOLDERS:
        monkeypatch.setenv(name, str(root / name))
    return prepare(content.model_copy(update={"output": root / "output"}), 4, elsewhere=False)


def test_resolved_study_reads_back_as_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = prepared(tmp_path, monkeypatch, study(train_cases=[3, "all"], controls={"resenc": False}))
    found.study.folder.mkdir()
    found.write_study()
    assert read_study(found.study.folder / "study.yaml") == found.study


def test_share_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    laptop = find_machine(study(), 2, elsewhere=False)
    assert (laptop.device, laptop.gpus, threads(study(), laptop, "train")) == ("cpu", 0, 2)
    cluster = find_machine(study(), None, elsewhere=True)
    assert (cluster.device, cluster.gpus, threads(study(), cluster, "train")) == ("cuda", 1, 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    assert find_machine(study(), 16, elsewhere=False).gpus == 3
    assert find_machine(study(resources={"gpu": 0}), 16, elsewhere=False).device == "cpu"


@pytest.mark.parametrize("file", sorted(STUDIES.glob("*.yaml")), ids=lambda file: file.stem)
def test_ready_study_on_generated_datasets(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = read_study(file)
    for number, name in enumerate((name for group in content.groups.values() for name in group), 1):
        write_files(tmp_path / "nnUNet_raw", name, number)
    found = prepared(tmp_path, monkeypatch, content)
    assert not found.missing and content.name == file.stem
    trainings = found.expansion.trainings.values()
    assert set(found.estimate.hours) == set(found.jobs) and min(found.estimate.hours.values()) > 0
    assert sum(job.rule == "train" for job in found.jobs.values()) == len(trainings)
    if content.published is None:
        return
    cells = {
        (
            t.run.model,
            t.run.head or "",
            t.run.adapter or "",
            t.run.method or "",
            dataset_key(t.run.source or t.run.dataset),
            dataset_key(target),
        )
        for t in trainings
        if t.run.control is None
        for target in t.targets
    }
    table = published_cells(content.published)
    table = table[table["source"].isin({dataset_key(name) for name in found.expansion.datasets})]
    published = set(
        table[["model", "head", "adapter", "method", "source", "target"]].itertuples(index=False, name=None)
    )
    assert published and published <= cells, sorted(published - cells)[:5]
