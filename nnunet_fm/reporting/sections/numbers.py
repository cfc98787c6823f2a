"""Format numbers: digits by metric, percentages, p-values, counts, seconds and bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nnunet_fm.metrics.scores_table import HD95, VOLUME_PREDICTION, VOLUME_REFERENCE
from nnunet_fm.reporting.tables import Best


@dataclass(frozen=True)
class MetricStyle:
    """Format of a metric: unit, digits after the point, and whether higher is better."""

    name: str
    unit: str
    digits: int
    higher: bool

    @property
    def axis(self) -> str:
        return f"{self.name} [{self.unit}]" if self.unit else self.name

    @property
    def best(self) -> Best:
        return "max" if self.higher else "min"

    def text(self, value: float) -> str:
        return number(value, self.digits)


def metric_style(name: str) -> MetricStyle:
    """Style of one of `nnunet_fm.metrics.scores_table.METRICS`."""
    if name == HD95:
        return MetricStyle(name, "mm", 2, higher=False)
    if name in (VOLUME_REFERENCE, VOLUME_PREDICTION):
        return MetricStyle(name, "ml", 2, higher=True)
    return MetricStyle(name, "", 3, higher=True)


def number(value: float, digits: int) -> str:
    """Format a number with a number of digits after the point and a proper minus sign."""
    return f"{value:.{digits}f}".replace("-", "−") if math.isfinite(value) else "–" if math.isnan(value) else "∞"


def signed(value: float) -> str:
    """A difference in percent: +1.2, −0.4, 0.0."""
    rounded = round(value, 1) or 0.0
    return f"{'+' if rounded > 0 else ''}{number(rounded, 1)}"


def p_value(value: float) -> str:
    """Two significant digits, and no smaller than 0.001."""
    return (
        "–" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.2g}" if value < 0.1 else f"{value:.2f}"
    )


def count(value: float) -> str:
    """An integer with thin spaces between the thousands."""
    return f"{round(value):,}".replace(",", "\u202f")


def percent(value: float) -> str:
    """A share from 0 to 1 in percent, with two significant digits below ten."""
    hundred = 100 * value
    return f"{hundred:.0f}" if hundred >= 10 or hundred == 0 else f"{hundred:.2g}"


def millions(value: float) -> str:
    """A number in millions, such as 58.26; below 0.1 with three significant digits."""
    share = value / 1e6
    return f"{share:.2f}" if share >= 0.1 or share == 0 else f"{share:.3g}"


def gibibytes(value: float) -> str:
    """Bytes as GiB."""
    return f"{value / 2**30:.2f}"


def plural(amount: int, noun: str) -> str:
    """``1 case``, ``2 cases``."""
    ending = "es" if noun.endswith("s") else "s"
    return f"{count(amount)} {noun}{'' if amount == 1 else ending}"
