"""Former paths of modules: importing one gives the module at its present path, with a DeprecationWarning."""

from __future__ import annotations

import importlib
import sys
import warnings
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType

PACKAGE = "nnunet_fm."
FORMER_FOLDERS = ("evaluation", "layers")
"""Folders that are no more: packages without any modules but those of `MOVED`."""
MOVED = {
    "adaptation.losses": "losses.adaptation",
    "cli.checks": "checks",
    "data.class_locations": "preprocessing.class_locations",
    "data.cropping": "preprocessing.cropping",
    "data.faults": "io.image_faults",
    "data.image_folders": "io.image_folders",
    "data.intensities": "preprocessing.intensities",
    "data.label_resampling": "preprocessing.label_resampling",
    "data.normalization": "preprocessing.normalization",
    "data.resampling": "preprocessing.resampling",
    "data.sharing": "preprocessing.shared_cache",
    "data.whole_images": "preprocessing.whole_images",
    "dataset_conversion.volume": "io.volume",
    "dataset_json": "io.dataset_json",
    "dataset_names": "io.dataset_names",
    "ending": "io.orphans",
    "evaluation.boundary": "metrics.boundary",
    "evaluation.case": "metrics.case",
    "evaluation.codes": "metrics.label_codes",
    "evaluation.figures": "reporting.figures",
    "evaluation.folder": "metrics.folder",
    "evaluation.frame": "metrics.scores_table",
    "evaluation.generalisation": "reporting.generalisation",
    "evaluation.label_map": "metrics.label_map",
    "evaluation.labels": "metrics.labels",
    "evaluation.machine": "records.machine",
    "evaluation.overlap": "metrics.overlap",
    "evaluation.overlay": "reporting.overlay",
    "evaluation.page": "reporting.page",
    "evaluation.parallel": "metrics.parallel",
    "evaluation.published": "reporting.published",
    "evaluation.ranking": "reporting.ranking",
    "evaluation.record": "records.training",
    "evaluation.report": "reporting.report",
    "evaluation.report_page": "reporting.sections",
    "evaluation.results": "reporting.results",
    "evaluation.size_groups": "metrics.size_groups",
    "evaluation.statistics": "reporting.statistics",
    "evaluation.subjects": "data.subjects",
    "evaluation.summary": "metrics.summary",
    "evaluation.surface": "metrics.surface",
    "evaluation.surroundings": "metrics.find_labels",
    "evaluation.tables": "reporting.tables",
    "evaluation.training_log": "reporting.training_log",
    "foreign": "io.untrusted",
    "image_files": "io.image_files",
    "inference.times": "records.prediction",
    "late_imports": "cpu.lazy_imports",
    "layers.attention": "cpu.attention",
    "layers.channels_last": "cpu.channels_last",
    "layers.devices": "cpu.devices",
    "layers.enlarging": "cpu.upsample",
    "layers.inference": "cpu.prepacked_weights",
    "layers.initialisation": "cpu.skip_initialisation",
    "layers.memory": "cpu.malloc",
    "layers.processor": "cpu.cpu_features",
    "layers.products": "cpu.onednn_linear",
    "limits": "cpu.limits",
    "models.branch": "networks.side_branch",
    "models.feature_cache": "networks.feature_cache",
    "models.foreign_plans": "planfile.untrusted",
    "models.plan_key": "planfile.schema",
    "models.segmenter2d": "networks.segmenter2d",
    "models.stages": "losses.stages",
    "plans.case_preprocessor": "preprocessing.case_preprocessor",
    "plans.domains": "planfile.eval_datasets",
    "plans.files": "planfile.write",
    "plans.fingerprint": "preprocessing.fingerprint",
    "plans.grids": "preprocessing.grids",
    "plans.orientation": "preprocessing.orientation",
    "plans.pairs": "preprocessing.pairs",
    "plans.preprocessor": "preprocessing.preprocessor",
    "plans.raw": "preprocessing.raw",
    "plans.source": "planfile.trained_model",
    "replacing": "io.atomic_write",
    "studies.locks": "io.locks",
    "studies.marks": "studies.job_markers",
    "studies.naming": "studies.job_names",
    "studies.trained": "studies.collect_trained",
    "studies.workplace": "studies.job_context",
    "trainers.base": "trainers.foundation",
    "trainers.dice_sums": "losses.dice_sums",
    "trainers.loss": "losses.dice_ce",
    "trainers.setting": "planfile.training_config",
    "wording": "io.messages",
}
"""Former path -> present path, both below `PACKAGE`. Delete a line with the release that ends its support."""


def present_path(path: str) -> str:
    """The present dotted path of a class or function whose path may be a former one."""
    module, _, name = path.rpartition(".")
    now = MOVED.get(module.removeprefix(PACKAGE)) if module.startswith(PACKAGE) else None
    return path if now is None else f"{PACKAGE}{now}.{name}"


def find_spec(name: str) -> ModuleSpec | None:
    """A spec for a former path, None for every other name; asked after all other finders have found nothing."""
    short = name.removeprefix(PACKAGE)
    if short in FORMER_FOLDERS:
        return ModuleSpec(name, None, is_package=True)  # an empty folder needs no loader
    return ModuleSpec(name, _Moved(PACKAGE + MOVED[short])) if short in MOVED else None


class _Moved(Loader):
    """Puts the module of the present path in the place of the former one."""

    def __init__(self, now: str) -> None:
        self.now = now

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        warnings.warn(f"{module.__name__} is now {self.now}", DeprecationWarning, stacklevel=2)
        sys.modules[module.__name__] = importlib.import_module(self.now)
