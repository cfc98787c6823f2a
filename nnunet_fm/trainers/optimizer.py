"""Optimiser of a recipe for the trainable parameters of a network."""

from __future__ import annotations

from typing import Any

import torch

from nnunet_fm.models.card import Recipe
from nnunet_fm.networks.base import FoundationNetwork
from nnunet_fm.planfile.schema import PlanError


def build_optimizer(network: FoundationNetwork, recipe: Recipe) -> torch.optim.Optimizer:
    """Build SGD with Nesterov momentum, Adam (weight decay as L2 penalty) or AdamW over the trainable parameters.

    Args:
        network: without DDP or compile wrapper, because groups go by parameter names.
        recipe: with ``decay_norms`` off, norms, biases and the parameters of the network's `no_weight_decay` do not
            decay. With ``layer_decay`` below 1 the learning rate falls by this factor per layer from the head down;
            the network's `group_matcher` names the layers.

    Raises:
        PlanError: for a layer decay of a network that does not name its layers.
    """
    groups = parameter_groups(network, recipe)
    # On a GPU PyTorch's default works with nnU-Net's gradient scaler; on a CPU the default is a slow loop.
    fused = True if next(network.parameters()).device.type == "cpu" else None
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, recipe.learning_rate, recipe.momentum, nesterov=recipe.momentum > 0, fused=fused)
    adam = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return adam(groups, recipe.learning_rate, fused=fused)


def parameter_groups(network: FoundationNetwork, recipe: Recipe) -> list[dict[str, Any]]:
    """Groups of trainable parameters with a learning rate and a weight decay each; arguments as `build_optimizer`."""
    without_decay: set[str] = set() if recipe.decay_norms else network.no_weight_decay()
    groups: list[dict[str, Any]]
    if recipe.layer_decay < 1:
        if not hasattr(network, "group_matcher"):
            raise PlanError(
                f"recipe.layer_decay is {recipe.layer_decay}, but {type(network).__name__} does not name its layers: "
                "plan with --set recipe.layer_decay=1",
                code="layer-decay",
            )
        from timm.optim import param_groups_layer_decay  # here, because timm's import is slow and few recipes need it

        groups = param_groups_layer_decay(
            network,
            weight_decay=recipe.weight_decay,
            no_weight_decay_list=without_decay,
            weight_decay_exclude_1d=not recipe.decay_norms,
            layer_decay=recipe.layer_decay,
        )
    elif recipe.decay_norms:
        trained = [p for p in network.parameters() if p.requires_grad]
        groups = [{"params": trained, "weight_decay": recipe.weight_decay}]
    else:
        from timm.optim import param_groups_weight_decay

        groups = param_groups_weight_decay(network, recipe.weight_decay, without_decay)
    for group in groups:
        group["lr"] = recipe.learning_rate * group.pop("lr_scale", 1.0)
    return groups
