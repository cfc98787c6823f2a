"""Report of the feature cache after each epoch."""

from __future__ import annotations

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_fm.networks.feature_cache import FeatureCache
from nnunet_fm.trainers.callbacks import Callback


class FeatureCacheReport(Callback):
    """Log how many feature maps of a frozen backbone were in the cache, and how much memory it takes.

    Args:
        trainer: the training.
        cache: the cache of its network.
    """

    def __init__(self, trainer: nnUNetTrainer, cache: FeatureCache) -> None:
        super().__init__(trainer)
        self.cache = cache

    def validation_end(self) -> None:
        self.trainer.print_to_log_file(self.cache.report())
