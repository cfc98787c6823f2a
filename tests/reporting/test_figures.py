"""Figures of a report: what is drawn where, in SVG that follows the page's colours, and pictures of label maps."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from nnunet_fm.reporting.figures.bars import grouped_bars_figure, stacked_bars_figure
from nnunet_fm.reporting.figures.class_shares import class_shares_figure, percent_text
from nnunet_fm.reporting.figures.critical_difference import critical_difference_figure
from nnunet_fm.reporting.figures.heatmap import heatmap_figure
from nnunet_fm.reporting.figures.learning_curves import learning_curves_figure, mean_curve
from nnunet_fm.reporting.figures.ranking import ranking_figure
from nnunet_fm.reporting.figures.scatter import scatter_figure
from nnunet_fm.reporting.figures.size_groups import size_groups_figure
from nnunet_fm.reporting.figures.slices import EDGE_PIXELS, CasePictures, array_png, fullest_slices
from nnunet_fm.reporting.figures.style import INK, SERIES, plain_names, shortened, svg, thousands
from nnunet_fm.reporting.figures.surface import foreground_box, surface_picture
from nnunet_fm.reporting.overlay import COLOURS, class_colour
from tests.helpers.errors import fails
from tests.helpers.images import write_volume

RANKED = pd.DataFrame(
    {
        "label": ["A", "stock"],
        "control": [False, True],
        "mean": [0.9, 0.8],
        "low": [0.88, math.nan],
        "high": [0.92, math.nan],
    }
)
POINTS = pd.DataFrame({"label": ["A", "B"], "rank": [1, 2], "control": [False, True], "x": [1e6, 3e8], "y": [0.9, 0.8]})
CURVE = pd.DataFrame({"iteration": [100.0, 200.0, 300.0], "value": [0.1, 0.5, 0.6]})
MATRIX = pd.DataFrame([[0.9, 0.5], [math.nan, 0.8]], index=["D1", "D2"], columns=["D1", "D2"])
BARS = pd.DataFrame({"Dataset501_A": [1000.0, 12345.0], "Dataset502_B": [math.nan, 500.0]}, index=["one", "two"])
JACCARD = pd.DataFrame(
    {"label": ["A"] * 5 + ["B"] * 5, "size_group": ["<1 %"] * 5 + ["≥15 %"] * 5, "value": np.linspace(0, 1, 10)}
)
P_VALUES = pd.DataFrame(np.full((3, 3), 0.2), index=["A", "B", "C"], columns=["A", "B", "C"])

FIGURES: dict[str, tuple[Callable[[], Figure], list[str]]] = {
    "ranking": (lambda: ranking_figure(RANKED, {"A": [0.89, 0.91]}, "Dice"), ["A", "stock", "Dice"]),
    "scatter": (lambda: scatter_figure([("parameters", POINTS)], "Dice"), ["A", "B", "parameters", "100M"]),
    "curves": (
        lambda: learning_curves_figure({"A": {"D1": [CURVE, CURVE]}, "U-Net": {"D1": [CURVE]}}, "U-Net", "Dice"),
        ["A", "D1", "U-Net (baseline)", "iteration"],
    ),
    "heat map": (lambda: heatmap_figure({"A": MATRIX}, "{:.3f}".format), ["A", "D1", "D2", "0.900", "0.500", "–"]),
    "bars": (lambda: grouped_bars_figure(BARS, "iterations", ["two"]), ["one", "two", "A", "B", "12.35k", "–"]),
    "stacked": (lambda: stacked_bars_figure(BARS, "seconds"), ["one", "two", "1000.00", "12845.00"]),
    "shares": (lambda: class_shares_figure({"D": {"big": 0.99, "tiny": 0.0004}}), ["big", "tiny", "99 %", "0.04 %"]),
    "groups": (lambda: size_groups_figure(JACCARD, ["A", "B"], ["B"], "Jaccard"), ["<1 %", "≥15 %", "A", "B"]),
    "ranks": (
        lambda: critical_difference_figure(pd.Series({"A": 1.25, "B": 2.0, "C": 2.75}), P_VALUES),
        ["A 1.25", "2.75 C"],
    ),
}


def words(element: str) -> list[str]:
    return [" ".join("".join(text.itertext()).split()) for text in ElementTree.fromstring(element).iter("text")]


@pytest.mark.parametrize("name", FIGURES)
def test_svg_has_the_words_and_follows_the_page(name: str) -> None:
    make, expected = FIGURES[name]
    element = svg(make(), "what <is> seen", "f7")
    assert set(expected) <= set(words(element))
    assert 'aria-label="what &lt;is&gt; seen"' in element
    assert INK not in element and "var(--text)" in element  # no colour of one scheme is left
    assert "http" not in element and "font-family" not in element and "DejaVu" not in element
    identifiers = re.findall(r'\bid="([^"]*)"', element)
    assert all(i.startswith("f7-") for i in identifiers) and len(set(identifiers)) == len(identifiers)
    assert set(re.findall(r"url\(#([^)]*)\)", element)) | set(re.findall(r'href="#([^"]*)"', element)) <= set(
        identifiers
    )
    assert len(element) < 60_000


def test_the_same_figure_is_the_same_svg() -> None:
    make, _ = FIGURES["scatter"]
    assert svg(make(), "x", "a") == svg(make(), "x", "a")


def test_numbers_keep_their_digits_in_svg() -> None:
    element = svg(heatmap_figure({"A": MATRIX}, lambda value: f"{value:.5f}"), "x", "a")
    assert {"0.90000", "0.80000"} <= set(words(element))


def test_names_are_escaped_and_dollars_are_no_formula() -> None:
    table = RANKED.assign(label=["<b>$a_1$ & co", "日本"])
    assert {"<b>$a_1$ & co", "日本"} <= set(words(svg(ranking_figure(table, {}, "Dice"), "x", "a")))


def test_stronger_cells_are_better() -> None:
    def opacity(higher: bool) -> dict[float, float]:
        ax = heatmap_figure({"A": MATRIX}, str, higher=higher).axes[0]
        filled = [patch for patch in ax.patches if patch.get_fill()]
        return {MATRIX.iloc[i // 2, i % 2]: patch.get_alpha() for i, patch in enumerate(filled)}

    assert opacity(True)[0.9] > opacity(True)[0.8] > opacity(True)[0.5]
    assert opacity(False)[0.9] < opacity(False)[0.8] < opacity(False)[0.5]


def test_box_is_the_quartiles() -> None:
    figure = size_groups_figure(JACCARD, ["A", "B"], [], "Jaccard")
    box = figure.axes[0].patches[0].get_path().vertices
    quartiles = np.quantile(JACCARD["value"][:5], [0.25, 0.75])
    assert (box[:, 0].min(), box[:, 0].max()) == pytest.approx(tuple(quartiles))


def test_stack_and_bars_have_their_lengths() -> None:
    grouped = grouped_bars_figure(BARS, "x").axes[0].patches
    assert [p.get_width() for p in grouped] == pytest.approx([1000, 12345, math.nan, 500], nan_ok=True)
    stacked = stacked_bars_figure(BARS, "x").axes[0].patches
    assert [p.get_x() for p in stacked] == [0, 0, 1000, 12345]


def test_mean_curve_is_where_all_trainings_are() -> None:
    short = pd.DataFrame({"iteration": [150.0, 250.0], "value": [0.2, 0.4]})
    mean = mean_curve([CURVE, short, pd.DataFrame({"iteration": [1.0], "value": [math.nan]})])
    assert mean["iteration"].tolist() == [150, 200, 250]
    assert mean["value"].tolist() == pytest.approx([(0.3 + 0.2) / 2, (0.5 + 0.3) / 2, (0.55 + 0.4) / 2])
    assert mean_curve([]).empty


def test_many_points_are_named_by_rank() -> None:
    count = 40
    points = pd.DataFrame(
        {"label": [f"model {i}" for i in range(count)], "rank": range(1, count + 1), "control": False}
    )
    points = points.assign(x=np.geomspace(1e6, 1e9, count), y=np.linspace(0.9, 0.1, count))
    found = set(words(svg(scatter_figure([("parameters", points)], "Dice"), "x", "a")))
    assert {"1", "40"} <= found and "model 3" not in found


def test_short_names() -> None:
    assert shortened("x" * 34) == "x" * 34
    long = shortened("a" * 30 + "b" * 30)
    assert len(long) == 34 and long.startswith("aaa") and long.endswith("bbb") and "…" in long
    assert plain_names(["Dataset501_A", "Dataset502_B", "C"]) == {"Dataset501_A": "A", "Dataset502_B": "B", "C": "C"}
    assert plain_names(["Dataset501_A", "Dataset502_A"]) == {n: n for n in ("Dataset501_A", "Dataset502_A")}
    assert [thousands(v) for v in (0, 500, 2000, 12500, 3e6, 1.1e9)] == ["0", "500", "2k", "12.5k", "3M", "1.1G"]
    assert [percent_text(v) for v in (64.2, 3.14159, 0.0004)] == ["64 %", "3.1 %", "0.0004 %"]


def test_class_colours_differ() -> None:
    assert [class_colour(i) for i in range(7)] == list(COLOURS)
    colours = [class_colour(i) for i in range(21)]
    assert len(set(colours)) == 21 and class_colour(21) == colours[0]
    assert all(re.fullmatch(r"#[0-9a-fA-F]{6}", colour) for colour in colours)
    assert len(set(SERIES)) == len(SERIES)


def labelled(shape: tuple[int, ...] = (12, 30, 20)) -> np.ndarray:
    labels = np.zeros(shape, np.uint8)
    labels[2:6, 4:12, 3:9] = 1
    labels[7:10, 20:26, 12:18] = 2
    return labels


def opened(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA")).astype(int)


def near(picture: np.ndarray, colour: str, tolerance: int = 60) -> np.ndarray:
    """Where a picture has about this colour."""
    distance = np.abs(picture[..., :3] - 255 * np.array(to_rgb(colour))).max(axis=-1)
    return (distance < tolerance) & (picture[..., 3] > 128)


def test_slices_show_all_structures() -> None:
    labels = labelled()
    z, _y, _x = fullest_slices(labels)
    assert 2 <= z < 6  # nothing is labelled between the two
    assert fullest_slices(np.zeros((4, 6, 8))) == (2, 3, 4)
    both = np.zeros((5, 9, 9), np.uint8)
    both[1:3, 1:4, 1:4], both[2:4, 5:8, 5:8] = 1, 2
    assert fullest_slices(both)[0] == 2  # the only slice with both


def test_picture_is_a_crop_in_true_proportions(tmp_path: Path) -> None:
    labels = np.zeros((20, 60, 60), np.uint8)
    labels[8:12, 5:15, 5:15] = 1
    grey = np.random.default_rng(0).normal(50, 10, labels.shape).astype(np.float32)
    image = write_volume(tmp_path / "i.nii.gz", grey, (0.5, 1, 3))
    case = CasePictures(image, write_volume(tmp_path / "l.nii.gz", labels, (0.5, 1, 3)), {"organ": (1,)})
    pictures = {view.name: opened(case.picture(view, case.labels)) for view in case.views}
    assert set(pictures) == {"axial", "coronal", "sagittal"} and case.sharpest.name == "axial"
    for name, picture in pictures.items():
        assert max(picture.shape[:2]) == pytest.approx(EDGE_PIXELS, abs=1)
        assert near(picture, COLOURS[0]).any(), name
        assert not near(opened(case.picture(next(v for v in case.views if v.name == name))), COLOURS[0], 30).any()
    # 40 % of the image at least: 24 rows of 1 mm, 24 columns of 0.5 mm, unless the labels need more.
    height, width = pictures["axial"].shape[:2]
    assert height / width == pytest.approx(24 / (34 * 0.5), rel=0.02)


def test_two_dimensions_and_colours(tmp_path: Path) -> None:
    labels = np.zeros((40, 60), np.uint8)
    labels[10:20, 10:30] = 1
    rgb = np.stack([labels * 100, labels * 50, labels], -1)
    Image.fromarray(rgb).save(tmp_path / "i.png")
    Image.fromarray(labels).save(tmp_path / "l.png")
    case = CasePictures(tmp_path / "i.png", tmp_path / "l.png", {"organ": (1,)})
    assert case.flat and len(case.views) == 1
    assert near(opened(case.picture(case.sharpest, case.labels)), COLOURS[0]).any()


def test_other_size_is_refused(tmp_path: Path) -> None:
    image = write_volume(tmp_path / "i.nii.gz", np.zeros((4, 5, 6), np.float32), (1, 1, 1))
    other = write_volume(tmp_path / "other.nii.gz", np.zeros((4, 5, 7), np.uint8), (1, 1, 1))
    with fails("grid-differs", "other.nii.gz"):
        CasePictures(image, other, {})


def test_surfaces_stand_where_the_patient_has_them() -> None:
    labels = np.zeros((30, 30, 30), np.uint8)  # z to superior, x to the patient's left
    labels[20:28, 10:18, 2:10] = 1  # above, on the patient's right
    labels[2:10, 10:18, 20:28] = 2
    classes = {"one": (1,), "two": (2,)}
    box = foreground_box(labels)
    picture = opened(surface_picture(labels, (1, 1, 1), classes, box, turn=0))
    centres = [np.argwhere(near(picture, COLOURS[number], 90)).mean(axis=0) for number in (0, 1)]
    assert centres[0][0] < centres[1][0]  # above
    assert centres[0][1] < centres[1][1]  # the patient's right is on the left
    assert (picture[-1, 0, 3], picture[..., 3].max()) == (0, 255)  # a transparent ground
    empty = surface_picture(np.zeros_like(labels), (1, 1, 1), classes, box, turn=0)
    assert opened(empty).shape == picture.shape and opened(empty)[..., 3].max() == 0


def test_thin_structures_have_a_surface() -> None:
    labels = np.zeros((10, 200, 200), np.uint8)
    labels[5, 100, 20:180] = 1
    picture = opened(surface_picture(labels, (5, 1, 1), {"vessel": (1,)}, foreground_box(labels)))
    assert (picture[..., 3] > 0).any()


def test_box_of_nothing_is_everything() -> None:
    assert foreground_box(np.zeros((2, 3, 4))) == (slice(None),) * 3
    assert foreground_box(labelled())[0] == slice(0, 12)


def test_array_as_picture() -> None:
    colours = np.zeros((4, 8, 3), np.float32)
    colours[..., 1] = 1
    picture = opened(array_png(colours))
    assert picture.shape[:2] == (EDGE_PIXELS // 2, EDGE_PIXELS) and (picture[..., 1] == 255).all()
    assert opened(array_png(np.linspace(0, 1, 32).reshape(4, 8))).shape[:2] == (EDGE_PIXELS // 2, EDGE_PIXELS)
