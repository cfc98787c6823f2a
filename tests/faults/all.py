"""All faults: importing the modules puts them on the list."""

from tests.faults import (
    adapting,
    converting,
    environment,
    evaluating,
    planning,
    predicting,
    preprocessing,
    studies,
    training,
    weights,
)
from tests.faults.registry import FAULTS

MODULES = (environment, converting, planning, preprocessing, weights, training, adapting)
MODULES += (predicting, evaluating, studies)
__all__ = ["FAULTS", "MODULES"]
