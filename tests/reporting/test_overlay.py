"""Overlays of references and predictions on images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_fm.reporting.overlay import overlay_figure
from tests.helpers.errors import fails
from tests.helpers.images import write_volume


def panels(figure) -> dict[str, np.ndarray]:
    return {ax.get_title(): ax.images[0].get_array() for ax in figure.axes if ax.images}


def test_overlays_show_patients_the_radiologists_way(tmp_path: Path) -> None:
    """One voxel is bright: the patient's right, front and top; it must be left, and up, in every view."""
    array = np.zeros((10, 12, 14), np.float32)
    labels = np.zeros(array.shape, np.uint8)
    labels[3:8, 3:9, 3:11] = 1
    centre = (5, 5, 6)  # lower medians are not unique; the corners below lie in the planes through the centre
    for corner in ((centre[0], 0, 0), (9, centre[1], 0), (9, 0, centre[2])):
        array[corner] = 1.0  # LPS: low x is right, low y is front, high z is top
    files = {name: write_volume(tmp_path / f"{name}.nii.gz", a) for name, a in (("image", array), ("labels", labels))}
    for orientation in ("LPS", "RAS", "PIR"):
        turned = {}
        for name, file in files.items():
            turned[name] = tmp_path / f"{name}_{orientation}.nii.gz"
            sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(str(file)), orientation), str(turned[name]))
        shown = panels(overlay_figure(turned["image"], turned["labels"], turned["labels"], {"organ": (1,)}))
        assert len(shown) == 6
        for title, panel in shown.items():
            assert panel[0, 0] == 1.0, (orientation, title)
        assert shown["axial, reference"].shape == (12, 14)
        assert shown["coronal, reference"].shape == (10, 14)
        assert shown["sagittal, prediction"].shape == (10, 12)


def test_overlays_keep_proportions_and_outline_each_class(tmp_path: Path) -> None:
    labels = np.zeros((8, 10, 12), np.uint8)
    labels[2:6, 3:7, 4:6] = 1
    labels[2:6, 3:7, 6:8] = 2
    spacing = (0.5, 1.0, 4.0)
    image = write_volume(tmp_path / "image.nii.gz", np.random.default_rng(0).normal(size=labels.shape), spacing)
    reference = write_volume(tmp_path / "reference.nii.gz", labels, spacing)
    prediction = write_volume(tmp_path / "prediction.nii.gz", np.zeros_like(labels), spacing)
    figure = overlay_figure(image, reference, prediction, {"left": (1,), "right": (2,)})
    axes = {ax.get_title(): ax for ax in figure.axes if ax.images}
    assert [axes[f"{view}, reference"].get_aspect() for view in ("axial", "coronal", "sagittal")] == [2.0, 8.0, 4.0]
    assert len(axes["axial, reference"].collections) == 2
    assert len(axes["axial, prediction"].collections) == 0
    other = write_volume(tmp_path / "other.nii.gz", np.zeros((8, 10, 11), np.uint8))
    with fails("grid-differs", "image.nii.gz"):
        overlay_figure(image, reference, other, {"left": (1,)})
