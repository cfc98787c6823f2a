"""Shim for nnU-Net without the start-up hook: set ``nnUNet_extTrainer`` to this file's folder.

nnU-Net imports every module of that folder and asks it for the trainer by name.
"""

from nnunet_fm.host import check_host

check_host()

from nnunet_fm.trainers import __getattr__  # noqa: E402, F401
