"""Building of networks without random weights, most of the building time, for loading a checkpoint afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

LEFT_OUT = frozenset(
    (Tensor.uniform_, Tensor.normal_, Tensor.erfinv_, init.uniform_, init.normal_, init.kaiming_uniform_)
)
"""Functions that fill a tensor with random numbers, or transform uniform numbers to normal ones."""


class WithoutRandomWeights(TorchFunctionMode):
    """Context in which tensors are not filled with random numbers but stay uninitialised.

    Use it only if every tensor is loaded afterwards, which a strict ``load_state_dict`` ensures.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in LEFT_OUT:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
