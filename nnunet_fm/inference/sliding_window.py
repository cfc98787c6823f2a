"""The sliding window in batches: several windows, or mirrored versions of one, in each call of the network."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import torch
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from torch import Tensor

from nnunet_fm.errors import FailedError, InvalidValueError

FORWARD_VOXELS = 2**20
"""Voxels of all images in one call of the network, unless a single image has more: twenty slices of 224 x 224.

Larger batches gain nothing on a CPU, whose caches they leave."""

Window = tuple[slice | int, ...]
"""Index of a patch in data ``(C, Z, Y, X)``: of 2D patches, the slice is a number."""


def images_at_once(image: Sequence[int]) -> int:
    """Images of a spatial size ``([Z,] Y, X)`` that go into one call of the network."""
    return max(1, FORWARD_VOXELS // torch.Size(image).numel())


def mirrored_mean(network: Callable[[Tensor], Tensor], x: Tensor, mirror_axes: Sequence[int]) -> Tensor:
    """Mean logits ``(B, K, …)`` of images ``(B, C, …)`` over all mirrored versions, added in nnU-Net's order.

    Raises:
        ValueError: for an axis that the images do not have; the first spatial axis is 0.
    """
    if max(mirror_axes) > x.ndim - 3:
        raise InvalidValueError(
            f"images with {x.ndim - 2} axes cannot be mirrored along axis {max(mirror_axes)}", code="mirror-axes"
        )
    axes = [axis + 2 for axis in mirror_axes]
    versions = [chosen for count in range(len(axes) + 1) for chosen in itertools.combinations(axes, count)]
    together = max(1, images_at_once(x.shape[2:]) // len(x))
    total: Tensor | None = None
    for start in range(0, len(versions), together):
        flips = versions[start : start + together]
        logits = network(torch.cat([torch.flip(x, chosen) for chosen in flips]))
        for chosen, part in zip(flips, logits.split(len(x)), strict=True):
            part = torch.flip(part, chosen)
            total = part if total is None else total.add_(part)
        del logits, part
    assert total is not None
    return total.div_(len(versions))


def predictions(data: Tensor, windows: Sequence[Window], predict: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
    """Logits ``(K, …)`` of every window of data ``(C, Z, Y, X)``, in order.

    Windows in which every channel has one value throughout, such as air, look all alike to a network: of those with
    the most frequent values only one is predicted.

    Args:
        data: at least as large as a patch.
        windows: of one size.
        predict: logits ``(B, K, …)`` of patches ``(B, C, …)``.
    """
    values = [_constant(data[window]) for window in windows]
    common = Counter(value for value in values if value is not None).most_common(1)
    air, often = common[0] if common else (None, 0)
    if often < 2:
        air = None
    batches = _in_batches(
        data, [window for window, value in zip(windows, values, strict=True) if air is None or value != air], predict
    )
    of_air = None if air is None else predict(data[windows[values.index(air)]][None].contiguous())[0]
    for value in values:
        yield of_air.clone() if of_air is not None and value == air else next(batches)


def _in_batches(data: Tensor, windows: Sequence[Window], predict: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
    if not windows:
        return
    together = images_at_once(data[windows[0]].shape[1:])
    for start in range(0, len(windows), together):
        yield from predict(torch.stack([data[window] for window in windows[start : start + together]]))


def _constant(patch: Tensor) -> tuple[float, ...] | None:
    """The value of each channel of a patch ``(C, …)``, if each has a single one."""
    first, last = patch, patch
    for _ in patch.shape[1:]:
        first, last = first[..., 0], last[..., -1]
    if not torch.equal(first, last):  # most patches, at little cost
        return None
    constant = all(bool((channel == value).all()) for channel, value in zip(patch, first, strict=True))
    return tuple(first.tolist()) if constant else None


class Sums:
    """Weighted logits of overlapping windows, kept in half precision as nnU-Net keeps them.

    Args:
        classes: K.
        size: of the data, (Z, Y, X).
        patch_size: of the windows.
        device: where the sums are kept.
        gaussian: whether the middle of a window counts more than its margin.
    """

    def __init__(
        self, classes: int, size: Sequence[int], patch_size: Sequence[int], device: torch.device, *, gaussian: bool
    ) -> None:
        self.device = device
        self.logits = torch.zeros((classes, *size), dtype=torch.half, device=device)
        self.weights = torch.zeros(tuple(size), dtype=torch.half, device=device)
        self.weight: Tensor | int = 1
        if gaussian:
            self.weight = compute_gaussian(
                tuple(patch_size), sigma_scale=1.0 / 8, value_scaling_factor=10, device=device
            )

    def add(self, window: Window, prediction: Tensor) -> None:
        """Add the logits ``(K, …)`` of a window, which are changed."""
        prediction = prediction.to(self.device)
        prediction *= self.weight
        part = self.logits[window]
        # What ``part += prediction`` does, in less than half of its time.
        part.copy_(part.float().add_(prediction))
        self.weights[window[1:]] += self.weight

    def mean(self) -> Tensor:
        """Mean logits ``(K, Z, Y, X)``; the sums are used up.

        Raises:
            RuntimeError: if logits are too large for half precision.
        """
        for logits in self.logits:  # class by class: no temporary array of them all
            torch.div(logits, self.weights, out=logits)
            if bool(torch.isinf(logits).any()):
                raise FailedError(
                    "the network's logits, summed over windows, are too large for half precision",
                    code="logits-too-large",
                )
        return self.logits
