"""Section: pictures of cases: slices in three planes, best, median and worst case, surfaces, and features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from nnunet_fm.reporting.figures.slices import CasePictures
from nnunet_fm.reporting.figures.surface import foreground_box, surface_picture
from nnunet_fm.reporting.overlay import View
from nnunet_fm.reporting.sections.choice import (
    MOST_DATASETS,
    MOST_MODELS,
    MOST_SURFACES,
    Prediction,
    across_domains,
    case_score,
    classes_of,
    in_domain,
    leading_labels,
    pictured_datasets,
    ranked_cases,
)
from nnunet_fm.reporting.sections.context import Context
from nnunet_fm.reporting.sections.elements import Picture, Section, class_legend, picture_grid

DIRECTIONS = " A anterior, P posterior, S superior, I inferior, R and L the patient's right and left."


def cases_section(context: Context) -> Section:
    """Pictures by dataset, and features."""
    section = Section("cases", "Cases")
    if not context.pictures:
        section.missing.append("Pictures of cases were switched off by `--no-pictures`.")
        return section
    datasets = pictured_datasets(context)
    if not datasets:
        section.missing.append(
            "Pictures of cases: images, references or predictions were not found. Keep the predictions, and set "
            "nnUNet_raw to the folder of the images."
        )
    for target in datasets[:MOST_DATASETS]:
        context.progress(f"pictures of {target}")
        try:
            _dataset(context, section, target)
        except (OSError, RuntimeError, ValueError) as error:
            section.missing.append(f"Pictures of {target}: {' '.join(str(error).split())}")
    if len(datasets) > MOST_DATASETS:
        section.text(f"Pictures of the first {MOST_DATASETS} of {len(datasets)} datasets.")
    _features(context, section)
    return section


def _dataset(context: Context, section: Section, target: str) -> None:
    ranked = ranked_cases(context, target)
    first = ranked.get("median", next(iter(ranked.values())))
    opened = {case: _open(context, target, case) for case in dict.fromkeys([first, *ranked.values()])}
    classes = opened[first].classes
    section.heading(target)
    planes = _planes(context, target, first, opened[first])
    ranks = " and ".join([", ".join(list(ranked)[:-1]), list(ranked)[-1]] if len(ranked) > 1 else list(ranked))
    view = opened[first].sharpest.name
    shown = "images" if opened[first].flat else f"the {view} slices that show most of the truth"
    section.figure(
        f"{class_legend(classes)}{planes}",
        f"{first}: the slices that show most of the truth." + ("" if opened[first].flat else DIRECTIONS),
    )
    section.figure(
        class_legend(classes) + _montage(context, target, ranked, opened, _leading),
        f"{ranks[0].upper()}{ranks[1:]}"
        + (f" by {context.metric.name}, the mean over the models under study" if len(ranked) > 1 else "")
        + f": {shown}, with "
        "predictions of models that were trained on this dataset.",
    )
    across = _montage(context, target, ranked, opened, _across)
    if across:
        section.figure(
            class_legend(classes) + across,
            f"The same slices with {context.models[0]}, trained on this dataset (DS), on another one (DG), and "
            "adapted.",
        )
    if not opened[first].flat:
        surfaces = _surfaces(context, target, first, opened[first])
        section.figure(
            f"{class_legend(classes)}{surfaces}",
            f"{first}: surfaces, seen from the front and a little from the patient's left.",
        )


def _open(context: Context, target: str, case: str) -> CasePictures:
    files = context.files
    row = files[(files["target"] == target) & (files["case"] == case)].iloc[0]
    reference = Path(row["reference"])
    return CasePictures(Path(row["image"]), reference, classes_of(reference))


def _planes(context: Context, target: str, case: str, pictures: CasePictures) -> str:
    views = pictures.views
    rows: list[tuple[str, Sequence[Picture | None]]] = [
        (
            "truth",
            [_picture(pictures, view, pictures.labels, f"{case}, {view.name} slice with truth") for view in views],
        )
    ]
    for prediction in list(in_domain(context, target, case, context.models[:1])):
        labels = pictures.read(prediction.file)
        made = [_picture(pictures, v, labels, f"{case}, {v.name} slice with {prediction.label}") for v in views]
        rows.append((prediction.label, made))
    names = [view.name for view in views] if not pictures.flat else ["image"]
    return picture_grid(names, rows)


Named = Sequence[tuple[str, Prediction]]


def _leading(context: Context, target: str, case: str) -> Named:
    """Predictions of the best models and the best control, by label."""
    found = in_domain(context, target, case, leading_labels(context, MOST_MODELS))
    return [(prediction.label, prediction) for prediction in found]


def _across(context: Context, target: str, case: str) -> Named:
    """Predictions of the best model trained here, trained elsewhere, and adapted; empty if there is only the first."""
    label = context.models[0] if context.models else ""
    others = list(across_domains(context, target, case, label)) if label else []
    own = list(in_domain(context, target, case, [label])) if others else []
    return [(prediction.kind, prediction) for prediction in [*own, *others]]


def _montage(
    context: Context,
    target: str,
    ranked: Mapping[str, str],
    opened: Mapping[str, CasePictures],
    predictions: Callable[[Context, str, str], Named],
) -> str:
    """Rows of pictures, one per case: input, reference and predictions; empty without predictions."""
    rows: list[tuple[str, dict[str, Picture]]] = []
    for rank, case in ranked.items():
        pictures, view = opened[case], opened[case].sharpest
        row = {
            "input": _picture(pictures, view, None, f"{case}, image"),
            "truth": _picture(pictures, view, pictures.labels, f"{case}, truth"),
        }
        for name, prediction in predictions(context, target, case):
            alt = f"{case}, {prediction.label}, {prediction.kind}"
            note = _score(context, prediction, target, case)
            row[name] = _picture(pictures, view, pictures.read(prediction.file), alt, note)
        rows.append((f"{rank}: {case}", row))
    columns = list(dict.fromkeys(name for _, row in rows for name in row))
    if len(columns) == 2:
        return ""
    return picture_grid(columns, [(name, [row.get(column) for column in columns]) for name, row in rows])


def _score(context: Context, prediction: Prediction, target: str, case: str) -> str:
    style = context.metric
    unit = f" {style.unit}" if style.unit else ""
    return f"{style.name} {style.text(case_score(context, prediction.run, target, case))}{unit}"


def _picture(pictures: CasePictures, view: View, labels: NDArray[Any] | None, alt: str, note: str = "") -> Picture:
    return Picture(pictures.picture(view, labels), alt, note)


def _surfaces(context: Context, target: str, case: str, pictures: CasePictures) -> str:
    box = foreground_box(pictures.labels)
    names, made = ["truth"], [pictures.labels]
    notes = [""]
    for prediction in in_domain(context, target, case, leading_labels(context, MOST_SURFACES - 1)):
        names.append(prediction.label)
        made.append(pictures.read(prediction.file))
        notes.append(_score(context, prediction, target, case))
    row = [
        Picture(surface_picture(labels, pictures.spacing, pictures.classes, box), f"{case}, surface of {name}", note)
        for name, labels, note in zip(names, made, notes, strict=True)
    ]
    return picture_grid(names, [(case, row)], surfaces=True)


def _features(context: Context, section: Section) -> None:
    if not context.features:
        return
    section.heading("Features")
    rows = [(label, list(pair)) for label, pair in context.features.items()]
    section.figure(
        picture_grid(["input", "features"], rows),
        "The first three principal components of the backbone's last feature map, as red, green and blue, of a slice "
        "as the network gets it: places of one colour look alike to the network.",
    )
