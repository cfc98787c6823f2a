"""Shim for nnU-Net without the start-up hook: set ``nnUNet_extTrainer`` to this file's folder.

nnU-Net imports every module of that folder and asks it for the trainer by name. Trainers of ours then read the file of
``-pretrained_weights`` themselves, as with the hook.
"""

import sys

from nnunet_fm.host import check_host

check_host()

from nnunet_fm.hook.wrap import wrap  # noqa: E402
from nnunet_fm.trainers import __getattr__  # noqa: E402, F401

if training := sys.modules.get("nnunetv2.run.run_training"):
    wrap(training, "maybe_load_checkpoint")
