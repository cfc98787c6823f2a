"""Cache of the feature maps of a frozen 2D backbone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b

import torch
from torch import Tensor


class FeatureCache:
    """Feature maps by the content of their slice, in the computer's memory; the least recently used are dropped first.

    Args:
        capacity: most bytes of feature maps.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.bytes = 0
        self._maps: OrderedDict[bytes, list[Tensor]] = OrderedDict()
        self._asked = self._found = 0

    def maps(self, slices: Tensor, compute: Callable[[Tensor], list[Tensor]]) -> list[Tensor]:
        """Feature maps of a batch; those that are not cached are computed together.

        Args:
            slices: ``(B, C, Y, X)``, identified by their values.
            compute: function from indices ``(n,)`` to the feature maps ``(n, …)`` of these slices.

        Returns:
            Feature maps ``(B, …)``.
        """
        if torch.is_inference_mode_enabled():  # tensors of this mode cannot be used in training
            return compute(torch.arange(len(slices), device=slices.device))
        names = [_name(one) for one in slices.detach().cpu()]
        known = {name: self._maps[name] for name in names if name in self._maps}
        for name in known:
            self._maps.move_to_end(name)
        self._asked += len(names)
        self._found += sum(name in known for name in names)
        missing = {name: names.index(name) for name in names if name not in known}  # the first of equal slices
        if missing:
            computed = compute(torch.tensor(list(missing.values()), device=slices.device))
            known |= {name: [one[i] for one in computed] for i, name in enumerate(missing)}
            self._keep(missing, known)
        each = zip(*(known[name] for name in names), strict=True)
        return [torch.stack([one.to(slices.device) for one in same]) for same in each]

    def report(self) -> str:
        """A sentence with the share of feature maps found since the last report, and the memory of all."""
        share = self._found / max(self._asked, 1)
        self._asked = self._found = 0
        kept = f"those of {len(self._maps)} slices take {self.bytes / 1e9:.2f} GB"
        return f"{share:.0%} of the feature maps were known; {kept}"

    def clear(self) -> None:
        """Drop all feature maps, after the backbone's weights have changed."""
        self._maps.clear()
        self.bytes = 0

    def _keep(self, names: Iterable[bytes], maps: Mapping[bytes, list[Tensor]]) -> None:
        for name in names:
            self._maps[name] = [one.detach().cpu().clone() for one in maps[name]]  # not a view of the batch's memory
            self.bytes += _bytes(self._maps[name])
        while self.bytes > self.capacity:
            _, oldest = self._maps.popitem(last=False)
            self.bytes -= _bytes(oldest)


def _bytes(maps: list[Tensor]) -> int:
    return sum(one.nbytes for one in maps)


def _name(one: Tensor) -> bytes:
    """A hash of shape and values."""
    values = blake2b(str(tuple(one.shape)).encode(), digest_size=16)
    values.update(one.contiguous().numpy().tobytes())
    return values.digest()
