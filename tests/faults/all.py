"""All faults: importing the modules puts them on the list."""

from tests.faults import predicting
from tests.faults.registry import FAULTS

MODULES = (predicting,)
__all__ = ["FAULTS", "MODULES"]
