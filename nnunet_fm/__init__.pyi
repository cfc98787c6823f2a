from nnunet_fm.inference.in_memory import Predictor as Predictor
from nnunet_fm.models.create import create_model as create_model
from nnunet_fm.plans.planner import plan as plan

__version__: str
