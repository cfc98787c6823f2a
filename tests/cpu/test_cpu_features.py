"""What a processor gains from is measured once, decides alike every time, and can be set."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from nnunet_fm.cpu import cpu_features as processor
from nnunet_fm.networks.base import cpu_autocast

Measure = Callable[..., list[float]]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No switch is set, and nothing has been measured yet."""
    for name in (processor.BF16_SWITCH, processor.ONEDNN_SWITCH):
        monkeypatch.delenv(name, raising=False)
    measured = (processor.gains_from_bf16, processor.gains_from_onednn)
    for function in measured:
        function.cache_clear()
    yield
    for function in measured:
        function.cache_clear()


@pytest.fixture
def capable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor with AVX-512 and bfloat16, and oneDNN."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(processor, "has_onednn", lambda: True)


def measured(*seconds: float) -> tuple[Measure, list[int]]:
    """Something that gives these seconds in place of a measurement, and a list of its calls."""
    calls: list[int] = []

    def measure(*functions: object) -> list[float]:
        calls.append(len(functions))
        return list(seconds)

    return measure, calls


@pytest.mark.usefixtures("capable")
@pytest.mark.parametrize("decide", [processor.gains_from_bf16, processor.gains_from_onednn])
@pytest.mark.parametrize(("usual", "gains"), [(1.0, False), (1.1, False), (2.0, True)])
def test_a_clear_gain_decides_once(
    decide: Callable[[], bool], usual: float, gains: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, calls = measured(usual, 1.0)
    monkeypatch.setattr(processor, "_seconds", measure)
    assert decide() is decide() is gains
    number = len(calls)
    assert decide() is gains and len(calls) == number > 0


@pytest.mark.usefixtures("capable")
@pytest.mark.parametrize("lacking", ["AVX-512", "oneDNN", "bfloat16"])
def test_a_processor_without_the_instructions_is_not_measured(lacking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    measure, calls = measured(9.0, 1.0)
    monkeypatch.setattr(processor, "_seconds", measure)
    decide = processor.gains_from_onednn
    if lacking == "AVX-512":
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    elif lacking == "oneDNN":
        monkeypatch.setattr(processor, "has_onednn", lambda: False)
    else:
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
            monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
        decide = processor.gains_from_bf16
    assert not decide() and not calls


@pytest.mark.parametrize("gains", [False, True])
@pytest.mark.parametrize(("switch", "expected"), [("0", False), ("1", True), ("", None), (None, None)])
def test_switches(switch: str | None, expected: bool | None, gains: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "has_onednn", lambda: True)
    for name in ("gains_from_bf16", "gains_from_onednn"):
        monkeypatch.setattr(processor, name, lambda: gains)
    for name in (processor.BF16_SWITCH, processor.ONEDNN_SWITCH):
        if switch is not None:
            monkeypatch.setenv(name, switch)
    wanted = gains if expected is None else expected
    assert processor.computes_in_bf16() is wanted and processor.uses_onednn() is wanted
    with cpu_autocast(torch.device("cpu")):
        assert torch.is_autocast_enabled("cpu") is wanted
    with cpu_autocast(torch.device("meta")):
        assert not torch.is_autocast_enabled("cpu")
    monkeypatch.setattr(processor, "has_onednn", lambda: False)
    assert not processor.uses_onednn()


@pytest.mark.skipif(not processor.has_onednn(), reason="this PyTorch has no oneDNN")
def test_a_measurement_leaves_no_trace() -> None:
    """Random numbers, threads and autocast stay as they are; inside it is one thread in float32."""
    threads = torch.get_num_threads()
    seen: list[tuple[int, bool, bool]] = []
    torch.set_num_threads(2)
    try:
        state = torch.random.get_rng_state()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            processor._seconds(
                lambda: seen.append(
                    (torch.get_num_threads(), torch.is_autocast_enabled("cpu"), torch.is_grad_enabled())
                )
            )
            processor.gains_from_onednn()
            processor.gains_from_bf16()
            assert torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()
        assert torch.get_num_threads() == 2
        assert torch.equal(torch.random.get_rng_state(), state)
    finally:
        torch.set_num_threads(threads)
    assert set(seen) == {(1, False, False)}


@pytest.mark.skipif(not processor.has_onednn(), reason="this PyTorch has no oneDNN")
def test_what_is_timed_takes_time() -> None:
    x, weight = processor._operands()
    assert x.dtype == weight.dtype == torch.float32
    short, long = processor._seconds(lambda: processor._onednn(x[:8], weight), lambda: processor._onednn(x, weight))
    assert 0 < short < long
