"""nnU-Net's rotation and scaling, several times as fast: same draws, and results equal to rounding.

batchgeneratorsv2's `SpatialTransform` writes a grid of all axes, samples it once for the image, once for the nearest
labels, and once for each label. Here coordinates that depend on one axis alone stay one-dimensional, such axes are
interpolated one after the other, and scores of labels are computed for all labels at once, and only between voxels
that differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from torch import Tensor
from torch.nn.functional import grid_sample, pad

SCORE = 1000
"""Scores are compared in float16 after this factor, as batchgeneratorsv2 does: what nearly ties is a tie."""

BRICK = 32
"""Voxels along each axis of the parts in which a rotated volume is sampled."""


class AffineTransform(SpatialTransform):
    """Stock's transform without elastic deformation, for linear interpolation between voxels and zeros outside.

    A label map outside the image has the label that ``border_mode_seg`` tells; the label with the highest score wins,
    the nearest voxel settles a tie.
    """

    @classmethod
    def like(cls, stock: SpatialTransform) -> SpatialTransform:
        """Return a transform with the settings of ``stock``; ``stock`` itself where a setting is not supported here."""
        possible = (
            stock.p_elastic_deform == 0
            and (stock.mode_image, stock.padding_mode_image) == ("bilinear", "zeros")
            and (stock.mode_seg, stock.seg_tiebreak) == ("bilinear", "nearest")
            and stock.border_mode_seg in ("zeros", "constant")
            and not stock.align_corners
        )
        if not possible:
            return stock
        own = cls.__new__(cls)
        own.__dict__.update(stock.__dict__)
        return own

    def _get_base_grid_clone(self) -> Tensor:
        """Return no points: `get_parameters` of the stock transform is called for its random numbers only."""
        return torch.empty(0, len(self.patch_size))

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        """Stock's, with the points to sample in place of their grid; see `sample_points`."""
        parameters = super().get_parameters(**data_dict)
        if parameters["affine"] is not None:
            shape = data_dict["image"].shape[1:]
            parameters["points"] = sample_points(
                torch.from_numpy(parameters["affine"]).float(),
                parameters["center_location_in_pixels"],
                shape,
                self.patch_size,
            )
        return parameters

    def _apply_to_image(self, img: Tensor, **params: Any) -> Tensor:
        if "points" not in params:
            return super()._apply_to_image(img, **params).contiguous()  # a view would slow what comes after down
        return sample_image(img, params["points"], self.patch_size)

    def _apply_to_segmentation(self, segmentation: Tensor, **params: Any) -> Tensor:
        if "points" not in params:
            return super()._apply_to_segmentation(segmentation, **params).contiguous()
        outside = int(self.padding_value_seg) if self.border_mode_seg == "constant" else 0
        return sample_labels(segmentation, params["points"], self.patch_size, outside)


def sample_points(affine: Tensor, centre: Sequence[float], shape: Sequence[int], patch: Sequence[int]) -> list[Tensor]:
    """Position of each voxel of a patch in the image: per axis of the image, in voxels from the centre of the first.

    The operations are those of stock's grid, in its order, so that they round alike.

    Args:
        affine: ``(D, D)``, from the patch to the image.
        centre: of the patch in the image; ``shape / 2`` is the middle.
        shape: edges of the image.
        patch: edges of the patch.

    Returns:
        tensors of D axes; an axis of the patch that a coordinate does not depend on has length 1.
    """
    axes = range(len(patch))
    centred = [
        torch.linspace((1 - edge) / 2, (edge - 1) / 2, edge).reshape([-1 if a == axis else 1 for a in axes])
        for axis, edge in enumerate(patch)
    ]
    points = []
    for row, middle, size in zip(affine.tolist(), centre, shape, strict=True):
        terms = [centred[axis] * row[axis] for axis in axes if row[axis] != 0]
        relative = sum(terms[1:], terms[0]).add_(middle - size / 2).div_(size / 2)
        points.append(relative.add_(1).mul_(size).sub_(1).div_(2))  # as grid_sample understands it
    return points


def _separate(points: Sequence[Tensor], axis: int) -> bool:
    """Whether the coordinate along an axis depends on that axis alone, and the others do not depend on it."""
    own = all(edge == 1 for a, edge in enumerate(points[axis].shape) if a != axis)
    return own and all(other.shape[axis] == 1 for a, other in enumerate(points) if a != axis)


def sample_image(image: Tensor, points: Sequence[Tensor], patch: Sequence[int]) -> Tensor:
    """Linear interpolation between voxels; outside the image there are zeros.

    Args:
        image: ``(C, *shape)``, float32.
        points: of `sample_points`.
        patch: edges of the result ``(C, *patch)``.
    """
    dim = len(patch)
    separate = [axis for axis in range(dim) if _separate(points, axis)]
    if dim == 3 and separate not in ([0], [0, 1, 2]):
        return _sample_bricks(image, points, patch)
    image, points, _ = _cut(image, points, 0)
    for axis in separate:
        image = _interpolate(image, axis, points[axis].flatten())
    if len(separate) == dim:
        return image
    grid = torch.empty(*patch[-2:], 2)
    for axis in (-1, -2):  # grid_sample wants the last axis first
        grid[..., -1 - axis] = _normalised(points[axis].reshape(points[axis].shape[-2:]), image.shape[axis])
    slices = image.flatten(0, -3)[:, None]  # (C * Z, 1, Y, X)
    sampled = grid_sample(slices, grid.expand(len(slices), *grid.shape), align_corners=False)
    return sampled.reshape(len(image), *patch)


def _sample_bricks(image: Tensor, points: Sequence[Tensor], patch: Sequence[int]) -> Tensor:
    """`sample_image` for coordinates that depend on several axes, in 3D.

    PyTorch samples planes, not volumes, with vector instructions: as the rows of all planes of a volume make one tall
    plane, two samples of that, a plane apart, stand for one of the volume. Their rows are exact to about 10⁻⁷ of their
    number, so bricks of the patch are sampled one by one, each from the little that it needs.
    """
    result = torch.empty(len(image), *patch)
    for corner in product(*(range(0, edge, BRICK) for edge in patch)):
        inside = tuple(slice(start, min(start + BRICK, edge)) for start, edge in zip(corner, patch, strict=True))
        shape = [part.stop - part.start for part in inside]
        needed, (z, y, x), _ = _cut(image, [coordinates.expand(patch)[inside] for coordinates in points], 0)
        planes, height, width = needed.shape[1:]
        lower = z.floor().clamp_(max=planes - 2)
        rows = (planes - 1) * height
        grid = torch.empty(*shape, 2)
        grid[..., 0] = _normalised(x, width)
        grid[..., 1] = _normalised(lower * height + y, rows)
        for channel, volume in enumerate(needed.contiguous()):
            pair = volume.as_strided((1, 2, rows, width), (0, height * width, width, 1), volume.storage_offset())
            sampled = grid_sample(pair, grid.flatten(0, 1)[None], align_corners=False)[0].reshape(2, *shape)
            result[channel][inside] = torch.lerp(sampled[0], sampled[1], z - lower)
    return result


def _normalised(coordinates: Tensor, size: int) -> Tensor:
    """Coordinates as grid_sample wants them: -1 and 1 are the outer borders of the first and the last voxel."""
    return (coordinates * (2 / size)).add_(1 / size - 1)


def _cut(volume: Tensor, points: Sequence[Tensor], outside: int) -> tuple[Tensor, list[Tensor], list[int]]:
    """Part of a volume that linear interpolation needs, at least two voxels along each axis.

    Args:
        volume: ``(C, *shape)``.
        points: of `sample_points`.
        outside: value of voxels that do not exist; the result has up to one layer of them on each side.

    Returns:
        the part, the points in it, and which voxel of the volume its first one is, per axis.
    """
    moved, starts = [], []
    margins: list[int] = []
    for axis, coordinates in enumerate(points, 1):
        size = volume.shape[axis]
        smallest, largest = torch.aminmax(coordinates)
        start = min(max(int(smallest.floor()), -1), size - 1)
        end = max(min(int(largest.floor()) + 2, size + 1), 1)
        volume = volume.narrow(axis, max(start, 0), min(end, size) - max(start, 0))
        margins = [max(-start, 0), max(end - size, 0), *margins]
        moved.append((coordinates - start).clamp_(0, end - start - 1))  # further out all is outside
        starts.append(start)
    if any(margins):
        volume = pad(volume, margins, value=outside)
    return volume, moved, starts


def _interpolate(image: Tensor, axis: int, coordinates: Tensor) -> Tensor:
    """Linear interpolation along one axis at n coordinates, all of them inside."""
    size = image.shape[axis + 1]
    lower = coordinates.floor().clamp_(max=size - 2)
    index, share = lower.long(), coordinates - lower
    if axis == image.ndim - 2:  # single elements: a product with a matrix is faster than picking them
        matrix = torch.zeros(size, len(coordinates))
        matrix.scatter_(0, index[None], 1 - share[None]).scatter_(0, index[None] + 1, share[None])
        return torch.matmul(image, matrix)
    share = share.reshape([-1 if a == axis + 1 else 1 for a in range(image.ndim)])
    return torch.lerp(image.index_select(axis + 1, index), image.index_select(axis + 1, index + 1), share)


def sample_labels(labels: Tensor, points: Sequence[Tensor], patch: Sequence[int], outside: int) -> Tensor:
    """The label with the highest score, which is the interpolated value of "is this label?".

    Args:
        labels: ``(C, *shape)``, integers that int16 holds.
        points: of `sample_points`.
        patch: edges of the result ``(C, *patch)``.
        outside: label of what lies outside the image.
    """
    kind = labels.dtype
    labels, points, starts = _cut(labels, points, outside)
    labels = labels.contiguous()
    smallest, largest = (int(value) for value in torch.aminmax(labels))
    if smallest == largest:
        return torch.full((len(labels), *patch), smallest, dtype=kind)
    few = torch.int8 if smallest >= -128 and largest < 127 else torch.int16
    labels, mixed_mark = labels.to(few), torch.iinfo(few).max

    # A cell is the cube between neighbouring voxels: in one whose corners all have one label, that label wins.
    steps = labels.stride()[1:]
    last = [size - 2 for size in labels.shape[1:]]
    base = torch.zeros([1] * len(patch), dtype=torch.int32)
    for at, highest, step in zip(points, last, steps, strict=True):
        base = base + at.floor().clamp_(max=highest).int().mul_(step)
    base = base.expand(patch).reshape(-1)
    result = torch.stack([channel.index_select(0, base) for channel in _cells(labels, mixed_mark).flatten(1)])
    for channel, found in enumerate(result):
        mixed = (found == mixed_mark).nonzero()[:, 0]
        if len(mixed) > 0:
            voxels = torch.unravel_index(mixed, tuple(patch))
            at = torch.stack([coordinates.expand(patch)[voxels] for coordinates in points])
            lowest = torch.minimum(at.floor(), torch.tensor(last)[:, None])
            odd = (lowest.int() + torch.tensor(starts)[:, None]) % 2 == 1
            found[mixed] = _winners(labels[channel].reshape(-1), base[mixed], steps, at - lowest, odd)
    return result.reshape(-1, *patch).to(kind)


def _cells(labels: Tensor, mixed: int) -> Tensor:
    """Label of each cell, at its lowest corner: ``mixed`` where its corners differ, or where there is no cell.

    Args:
        labels: ``(C, *shape)``.
    """
    uniform = torch.ones_like(labels, dtype=torch.bool)
    for axis in range(1, labels.ndim):
        edge = labels.shape[axis]
        lower, upper = labels.narrow(axis, 0, edge - 1), labels.narrow(axis, 1, edge - 1)
        merged = (lower == upper).logical_and_(uniform.narrow(axis, 1, edge - 1))
        uniform.narrow(axis, 0, edge - 1).logical_and_(merged)
        uniform.narrow(axis, edge - 1, 1).zero_()
    return torch.where(uniform, labels, torch.tensor(mixed, dtype=labels.dtype))


def _winners(labels: Tensor, base: Tensor, steps: Sequence[int], shares: Tensor, odd: Tensor) -> Tensor:
    """Labels of n points by scores of the corners of their cells.

    Args:
        labels: flat.
        base: ``(n,)``, index of each cell's lowest corner.
        steps: from a voxel to the next one, per axis.
        shares: ``(D, n)``, position in the cell, in [0, 1].
        odd: ``(D, n)``, whether the lowest corner's number in the image is odd; half way the even one is nearest.
    """
    offsets, weights = [0], [torch.ones_like(shares[0])]
    for step, along in zip(steps, shares, strict=True):
        offsets = [*offsets, *(offset + step for offset in offsets)]
        weights = [*(weight * (1 - along) for weight in weights), *(weight * along for weight in weights)]
    corners = [labels.index_select(0, base + offset) for offset in offsets]
    scores = [weight.clone() for weight in weights]
    for i, corner in enumerate(corners):
        for j in range(i):
            same = corner == corners[j]
            scores[i].addcmul_(weights[j], same)
            scores[j].addcmul_(weights[i], same)
    rounded = [(score * SCORE).half() for score in scores]
    best, winner = rounded[0], corners[0]
    tied = torch.zeros_like(winner, dtype=torch.bool)
    for score, corner in zip(rounded[1:], corners[1:], strict=True):
        better, equal = score > best, (score == best) & (corner != winner)
        tied = (tied & ~better) | equal
        take = better | (equal & (corner < winner))
        best, winner = torch.maximum(best, score), torch.where(take, corner, winner)
    ties = tied.nonzero()[:, 0]
    if len(ties):
        nearest = base[ties].clone()
        for step, along, is_odd in zip(steps, shares[:, ties], odd[:, ties], strict=True):
            nearest += step * ((along > 0.5) | ((along == 0.5) & is_odd)).int()
        nearest_label = labels.index_select(0, nearest)
        among = torch.zeros(len(ties), dtype=torch.bool)
        for score, corner in zip(rounded, corners, strict=True):
            among |= (corner[ties] == nearest_label) & (score[ties] == best[ties])
        winner[ties] = torch.where(among, nearest_label, winner[ties])
    return winner
