"""Choice of the fastest precision and library on this CPU, measured once per process in 20 ms.

A measurement is the shortest of many times of one thread, so that other load on the machine does not count. The
thresholds lie far from the gains of all known CPUs, so that a CPU always decides the same.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

BF16_SWITCH = "NNUNET_FM_BF16"
ONEDNN_SWITCH = "NNUNET_FM_ONEDNN"
CHANNELS_LAST_SWITCH = "NNUNET_FM_CHANNELS_LAST"
SIZE = 256
"""Size of the square matrices to multiply: large enough for full speed, small enough for the cache of a core."""
ONEDNN_GAIN = 1.4
"""Smallest gain: far above the 1.0 of CPUs with a fast MKL, and far below the 2.1 of AMD's Zen 5."""
BF16_GAIN = 1.2
"""Smallest gain: with bfloat16 instructions it is 2 or more, below 1 if they are emulated."""


def computes_in_bf16() -> bool:
    """Whether networks compute in bfloat16 on the CPU: ``NNUNET_FM_BF16`` (0, 1) decides, else the speed."""
    return _switched(BF16_SWITCH, gains_from_bf16)


def uses_onednn() -> bool:
    """Whether float32 products use oneDNN: ``NNUNET_FM_ONEDNN`` (0, 1) decides, else the speed."""
    return has_onednn() and _switched(ONEDNN_SWITCH, gains_from_onednn)


def _switched(name: str, measured: Callable[[], bool]) -> bool:
    switch = os.environ.get(name)
    return switch == "1" if switch in ("0", "1") else measured()


def has_onednn() -> bool:
    """Whether this PyTorch comes with oneDNN, and it is not turned off (``torch.backends.mkldnn``)."""
    return torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)


@lru_cache(maxsize=1)
def gains_from_bf16() -> bool:
    """Whether the processor has bfloat16 arithmetic (AVX512-BF16, AMX), and a product in it takes less time."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    if not any(getattr(torch.cpu, name)() for name in checks if hasattr(torch.cpu, name)):
        return False
    x, weight = _operands()
    x_low, weight_low = x.bfloat16(), weight.bfloat16()
    single = _onednn if gains_from_onednn() else F.linear
    high, low = _seconds(lambda: single(x, weight), lambda: F.linear(x_low, weight_low))
    return high > BF16_GAIN * low


@lru_cache(maxsize=1)
def gains_from_onednn() -> bool:
    """Whether oneDNN multiplies float32 matrices much faster than MKL, which PyTorch uses.

    MKL uses half of the speed of AVX-512 on CPUs that are not Intel's. Without AVX-512 both are equally fast.
    """
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not has_onednn():
        return False
    x, weight = _operands()
    usual, onednn = _seconds(lambda: F.linear(x, weight), lambda: _onednn(x, weight))
    return usual > ONEDNN_GAIN * onednn


def gains_from_channels_last() -> bool:
    """Whether to convolve volumes channels-last: ``NNUNET_FM_CHANNELS_LAST`` (0, 1) decides, else AVX-512.

    With AVX-512 oneDNN's channels-last convolutions are 1.1 to 1.6 times as fast. Nothing is measured, because the gain
    depends on the shape and is smaller than the noise.
    """
    return _switched(CHANNELS_LAST_SWITCH, lambda: has_onednn() and torch.backends.cpu.get_cpu_capability() == "AVX512")


def _operands() -> tuple[Tensor, Tensor]:
    """Matrices to multiply in a measurement; ones, because random ones would change the state of the generator."""
    x, weight = (torch.ones(SIZE, SIZE, dtype=torch.float32, device="cpu") for _ in range(2))
    return x, weight


def _onednn(x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def _seconds(*functions: Callable[[], object], repeats: int = 20) -> list[float]:
    """Each function's shortest processor time on one core, in s; they take turns."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            for function in functions:
                function()
            return [min(times) for times in zip(*[[_time(f) for f in functions] for _ in range(repeats)], strict=True)]
    finally:
        torch.set_num_threads(threads)


def _time(function: Callable[[], object]) -> float:
    start = time.thread_time()
    function()
    return time.thread_time() - start
