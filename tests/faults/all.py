"""All faults: importing the modules puts them on the list."""

from tests.faults import planning, predicting, preprocessing
from tests.faults.registry import FAULTS

MODULES = (planning, preprocessing, predicting)
__all__ = ["FAULTS", "MODULES"]
