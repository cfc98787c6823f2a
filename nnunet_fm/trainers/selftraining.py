"""fm_trainer_selftraining: training on confident pseudo-labels of another dataset and on a few labelled cases."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nnunet_fm.adaptation.pseudo_labels import at_scales, pool, predict, pseudo_labels
from nnunet_fm.adaptation.teacher import Teacher
from nnunet_fm.adaptation.views import split_views
from nnunet_fm.losses.adaptation import NOT_COUNTED, PooledCrossEntropy
from nnunet_fm.models.names import Spec
from nnunet_fm.trainers.adaptation import AdaptingTrainer

TEACHER_KEY = "teacher"


class fm_trainer_selftraining(AdaptingTrainer):
    """Adapt a trained model by self-training on pseudo-labels, as planned by ``nnunet-fm adapt``.

    The model predicts the weak view of each image. Confident predictions and true labels are the target of the strong
    view, pixel by pixel. A batch without either is left out.
    """

    spec = Spec(method="selftraining")

    _teacher: Teacher | None = None
    _teacher_state: dict[str, Tensor] | None = None
    _batches = _skipped = 0
    _unlabelled = _confident = 0.0

    @property
    def two_views(self) -> bool:  # type: ignore[override]
        return not self.adaptation.faithful

    def level_loss(self) -> nn.Module:
        return PooledCrossEntropy(regions=bool(self.regions))

    def batch_loss(self, data: Tensor, target: Tensor | list[Tensor]) -> Tensor | None:
        """Cross-entropy over true labels and confident pseudo-labels; None for a batch that has neither."""
        if self.adaptation.faithful:
            outputs = self.network(data)
            logits = self._as_one(outputs).detach()
        else:
            weak, strong = split_views(data)
            logits = predict(self._predictor(), weak)
        labels, unlabelled = self.read_target(target)
        pseudo = pseudo_labels(logits, self.adaptation.confidence, regions=bool(self.regions))
        pooled = pool(labels, unlabelled, pseudo)
        self._count(unlabelled, pseudo)
        if self._empty(pooled):
            self._skipped += 1
            return None
        if not self.adaptation.faithful:
            outputs = self.network(strong)
        return cast(Tensor, self.adaptation_loss(outputs, at_scales(pooled, target)))

    def _as_one(self, outputs: Tensor | list[Tensor]) -> Tensor:
        """Logits of a training pass: the finest output, or the mean of a head's stages."""
        if isinstance(outputs, Tensor):
            return outputs
        return outputs[0] if self.enable_deep_supervision else torch.stack(list(outputs)).mean(0)

    def _predictor(self) -> nn.Module:
        """Network that predicts the pseudo-labels of this iteration: the trained one, or a teacher that follows it."""
        adaptation = self.adaptation
        if adaptation.update_every == 1 and adaptation.teacher_momentum is None:
            return self.bare_network
        if self._teacher is None:
            self._teacher = Teacher(self.bare_network, adaptation.teacher_momentum)
            if self._teacher_state is not None:
                self._teacher.load_state_dict(self._teacher_state)
        if self.iteration % adaptation.update_every == 0:
            self._teacher.update(self.bare_network)
        return self._teacher.network

    def _empty(self, pooled: Tensor) -> bool:
        """Whether no pixel of the batch counts in any process, so that all processes decide alike."""
        counted = (pooled != NOT_COUNTED).any()
        if self.is_ddp:
            anywhere = counted.to(torch.uint8)
            dist.all_reduce(anywhere, op=dist.ReduceOp.MAX)
            counted = anywhere.bool()
        return not counted

    # Log and checkpoint

    def _count(self, unlabelled: Tensor, pseudo: Tensor) -> None:
        self._batches += 1
        hidden = unlabelled.expand_as(pseudo)
        self._unlabelled += float(hidden.sum())
        self._confident += float((hidden & (pseudo != NOT_COUNTED)).sum())

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        super().on_train_epoch_end(train_outputs)
        share = self._confident / self._unlabelled if self._unlabelled else float("nan")
        self.print_to_log_file(
            f"Confident share of pixels without label {share:.4f}, left out {self._skipped} of {self._batches} batches"
        )
        self._batches = self._skipped = 0
        self._unlabelled = self._confident = 0.0

    def extra_state(self) -> dict[str, Any]:
        teacher = {} if self._teacher is None else {TEACHER_KEY: self._teacher.state_dict()}
        return {**teacher, **super().extra_state()}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        super().load_extra_state(state)
        self._teacher_state = state.get(TEACHER_KEY)
