"""Networks built without their random weights, for those that a checkpoint replaces: most of the time of building."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

LEFT_OUT = frozenset(
    (Tensor.uniform_, Tensor.normal_, Tensor.erfinv_, init.uniform_, init.normal_, init.kaiming_uniform_)
)
"""What fills a tensor with random numbers, or makes normal ones of uniform ones; `torch.nn.init` calls these."""


class WithoutRandomWeights(TorchFunctionMode):
    """While entered, tensors that would be filled with random numbers are left as memory was.

    Only for a network whose every tensor is loaded afterwards, as a strict ``load_state_dict`` makes sure.
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
