"""Pictures of feature maps for a report: a slice of a case, and a 2D model's feature maps of it as colours."""

from __future__ import annotations

from glob import escape
from pathlib import Path

from nnunet_fm.reporting.results import Results
from nnunet_fm.reporting.sections.elements import Picture

MOST_FEATURES = 4
"""Number of models whose feature maps are shown; each network has to be loaded."""


def feature_pictures(results: Results) -> tuple[dict[str, tuple[Picture, Picture]], list[str]]:
    """Draw the feature maps of the first 2D foundation models.

    Args:
        results: runs and files.

    Returns:
        A slice and its feature maps by label of the model, and reasons why some are missing.
    """
    files = results.files.merge(results.runs[results.runs["control"].isna()], on="run")
    files = files[files["configuration"].str.startswith("2d")] if len(files) else files
    if not len(files):
        return {}, []
    from nnunet_fm.inference.features import feature_pca
    from nnunet_fm.reporting.figures.slices import array_png

    made: dict[str, tuple[Picture, Picture]] = {}
    problems = []
    for label, rows in files.groupby("label", sort=False):
        if len(made) == MOST_FEATURES:
            break
        row = rows.iloc[0]
        try:
            pair = feature_pca(Path(row["model_folder"]), row["fold"], "checkpoint_final.pth", _channels(row["image"]))
        except Exception as error:  # a network that cannot be loaded must not prevent the report
            problems.append(f"Features of {label}: {' '.join(str(error).split())}")
            continue
        if pair is not None:
            image, colours = (array_png(part) for part in pair)
            made[str(label)] = (
                Picture(image, f"slice of {row['case']}"),
                Picture(colours, f"features that {label} sees in the slice of {row['case']}"),
            )
    return made, problems


def _channels(first: str) -> list[Path]:
    """Files of all channels of a case, from the file of the first channel."""
    path = Path(first)
    stem, mark, ending = path.name.rpartition("_0000")
    if not mark:
        return [path]
    channels = sorted(path.parent.glob(f"{escape(stem)}_[0-9][0-9][0-9][0-9]{escape(ending)}"))
    return channels or [path]
