"""What the ladder adapter makes of given feature maps."""

from __future__ import annotations

from torch import Tensor, nn

from nnunet_fm.adapters.ladder import Ladder
from tests.parity.cases import Case


def merge(case: Case) -> dict[str, Tensor]:
    """``out<i>``: the mixed map of each pair."""
    ladder = Ladder(nn.Identity(), case.constructor["small_channels"], case.constructor["big_channels"])
    case.expect_names(ladder)
    case.fill(ladder)
    maps = case.inputs()
    mixed = ladder.eval().mix(maps[: len(maps) // 2], maps[len(maps) // 2 :])
    return {f"out{index}": out for index, out in enumerate(mixed)}
