"""fm_trainer_entropymin: minimisation of the entropy of predictions on another dataset, without labels."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from nnunet_fm.adaptation.pseudo_labels import at_scales
from nnunet_fm.losses.adaptation import EntropyLoss
from nnunet_fm.models.names import Spec
from nnunet_fm.trainers.adaptation import AdaptingTrainer


class fm_trainer_entropymin(AdaptingTrainer):
    """Adapt a trained model by minimising the entropy of its predictions, as planned by ``nnunet-fm adapt``."""

    spec = Spec(method="entropymin")

    def level_loss(self) -> nn.Module:
        return EntropyLoss(regions=bool(self.regions))

    def batch_loss(self, data: Tensor, target: Tensor | list[Tensor]) -> Tensor:
        counted, _ = self.read_target(target)
        return cast(Tensor, self.adaptation_loss(self.network(data), at_scales(counted, target)))
