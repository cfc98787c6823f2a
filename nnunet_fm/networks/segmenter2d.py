"""A 2D backbone and a decode head as one segmentation network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

from torch import Tensor, nn

from nnunet_fm.backbones import create_backbone, image_multiple
from nnunet_fm.backbones.align import alignment
from nnunet_fm.backbones.base import Backbone, Norm, Refine
from nnunet_fm.errors import InvalidValueError
from nnunet_fm.heads import create_head
from nnunet_fm.heads.base import FeatureMaps
from nnunet_fm.losses.stages import StagesLoss
from nnunet_fm.networks.base import FoundationNetwork
from nnunet_fm.networks.feature_cache import FeatureCache
from nnunet_fm.networks.side_branch import Branch
from nnunet_fm.networks.slices import (
    channel_stem,
    from_square,
    imagenet_normalise,
    scale_to_unit,
    to_rgb,
    to_square,
)
from nnunet_fm.published_quirks import published_channels, published_norm

InputRange = Literal["unit", "standardised"]
Normalisation = Literal["imagenet", "minmax"]


class FoundationSegmenter2D(FoundationNetwork):
    """Segment slices ``(B, C, Y, X)`` of any size with a backbone of one square size; logits ``(B, K, Y, X)``.

    Args:
        input_channels: image channels; mapped to three as in `slices.to_rgb`.
        num_classes: output channels.
        backbone: name of a backbone.
        head: name of a decode head.
        image_size: size in pixels of the square that slices are padded and resized to; logits are resized back.
        input_range: "unit" for data in [0, 1]; "standardised" for data of about zero mean and unit variance, which
            are not normalised again.
        normalisation: for data in [0, 1]: "imagenet" standardises by ImageNet's mean and standard deviation, "minmax"
            scales each slice from its own minimum and maximum to [0, 1], like the official MedSAM.
        faithful: repeat the thesis's code where it departs from its text, see `published_quirks`.
        deep_supervision: without effect, for the signature of all networks; stages of a head are always supervised.
        backbone_arguments: further arguments of the backbone.
        head_arguments: name of a head -> its further arguments.
        adapter_arguments: name of an adapter -> its further arguments.

    Raises:
        ValueError: for an unknown backbone, head, range or normalisation, or a size that the backbone cannot take.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        backbone: str,
        head: str = "linear",
        image_size: int = 224,
        input_range: InputRange = "unit",
        normalisation: Normalisation = "imagenet",
        faithful: bool = False,
        deep_supervision: bool = False,
        backbone_arguments: Mapping[str, Any] | None = None,
        head_arguments: Mapping[str, Mapping[str, Any]] | None = None,
        adapter_arguments: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        if input_range not in ("unit", "standardised"):
            raise InvalidValueError(
                f"input_range is 'unit' or 'standardised', got '{input_range}'", code="argument-value"
            )
        if normalisation not in ("imagenet", "minmax"):
            raise InvalidValueError(
                f"normalisation is 'imagenet' or 'minmax', got '{normalisation}'", code="argument-value"
            )
        self.image_size = image_size
        self.input_range = input_range
        self.normalisation = normalisation
        self.faithful, self.backbone_name = faithful, backbone
        self.deep_supervision = deep_supervision
        self.adapter_arguments = dict(adapter_arguments or {})
        self.stem = channel_stem(input_channels)
        self.backbone = create_backbone(backbone, image_size, **(backbone_arguments or {}))
        features = FeatureMaps(self.backbone.embed_dim, self.backbone.grid, self.backbone.patch_size)
        self.head = create_head(head, features, num_classes, **(head_arguments or {}).get(head, {}))
        self.blocks = self.backbone.blocks_for(self.head.maps)
        self.align = alignment(self.backbone, self.blocks)
        if self.head.neck_in_backbone and self.backbone.takes_neck:
            self.neck_to_backbone()
        self.rein: nn.Module | None = None
        """Module of an adapter that refines the tokens after every block."""
        self.feature_norm: Norm | None = None
        """Which feature maps get the backbone's final norm, if an adapter decides."""
        self.ladder: nn.Module | None = None
        """Module of an adapter that mixes in a second backbone, ``(images, feature maps) -> feature maps``."""
        self.feature_cache: FeatureCache | None = None
        """Cache of the backbone's feature maps, if the training uses one."""
        self.key_to_encoder = "backbone"
        if self.stem is None:
            self.key_to_stem = f"backbone.{self.backbone.key_to_patch_embed}"
            self.keys_to_in_proj = tuple(f"backbone.{key}" for key in self.backbone.keys_to_in_proj)
        else:
            self.key_to_stem, self.keys_to_in_proj = "stem", ("stem",)
        self.key_to_lpe = f"backbone.{self.backbone.key_to_lpe}" if self.backbone.key_to_lpe else None
        self.key_to_head = tuple(f"head.{key}" for key in self.head.keys_to_classifier)

    def refit(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        fitted = dict(state_dict)
        for prefix, module in self.named_modules():
            if isinstance(module, Backbone):
                names = [name for name in state_dict if name.startswith(f"{prefix}.")]
                own = module.refit({name.removeprefix(f"{prefix}."): state_dict[name] for name in names})
                fitted |= {f"{prefix}.{name}": tensor for name, tensor in own.items()}
        return fitted

    @property
    def unused_keys(self) -> tuple[str, ...]:
        return tuple(f"head.{key}" for key in self.head.frozen_keys)

    @property
    def find_unused_parameters(self) -> bool:
        return self.head.find_unused_parameters or getattr(self.rein, "find_unused_parameters", False) or self.faithful

    @property
    def size_multiple(self) -> tuple[int, ...]:
        return (1, 1)

    @property
    def several_outputs(self) -> bool:
        return self.training and len(self.head.loss_weights) > 1

    def wrap_loss(self, loss: nn.Module, *, regions: bool = False) -> nn.Module:
        return loss if len(self.head.loss_weights) == 1 else StagesLoss(loss, self.head.loss_weights)

    def neck_to_backbone(self) -> None:
        """Move the head's neck to the backbone, where it is in the official SAM."""
        self.backbone.neck, self.head.neck = self.head.neck, None

    def second_branch(self, name: str) -> Branch:
        """Build a second backbone with a feature map for each of the head's, from the same relative depth."""
        multiple = image_multiple(name)
        size = max(self.image_size // multiple, 1) * multiple
        unit = self.input_range == "unit"
        return Branch(create_backbone(name, size), self.blocks, self.backbone, normalise=unit)

    def keep_maps(self, capacity: int) -> FeatureCache:
        """Cache the backbone's feature maps of slices, at most ``capacity`` bytes; loading weights clears the cache.

        Raises:
            ValueError: if feature maps change in training.
        """
        if self.stem is not None:
            raise InvalidValueError(
                "feature maps cannot be kept: a trained layer turns the images' channels into three",
                code="feature-cache",
            )
        if self.key_to_encoder not in self.frozen or self.rein is not None:
            raise InvalidValueError(
                "feature maps are kept of a frozen backbone only: train with the adapter freeze or ladder",
                code="feature-cache",
            )
        self.feature_cache = FeatureCache(capacity)
        self.register_load_state_dict_post_hook(_forget_maps)
        return self.feature_cache

    def forward_logits(self, x: Tensor) -> list[Tensor]:
        size, slices = x.shape[2:], x
        x = to_rgb(to_square(x, self.image_size), self.stem)
        if self.feature_cache is None:
            maps = self.backbone_maps(x)
        else:
            maps = self.feature_cache.maps(slices, lambda missing: self.backbone_maps(x[missing]))
        for place, align in self.align.items():
            maps[int(place)] = align(maps[int(place)])
        if self.ladder is not None:
            maps = self.ladder(x, maps)
        return [from_square(logits, size) for logits in self.head(maps)]

    def backbone_maps(self, x: Tensor) -> list[Tensor]:
        """Feature maps ``(B, C, h, w)`` of square images ``(B, 3, Y, X)`` for the head, last block first."""
        return self.backbone.features(
            self._normalised(x),
            self.blocks,
            norm=self.feature_norm or (published_norm(self.backbone_name) if self.faithful else None),
            refine=None if self.faithful else cast("Refine | None", self.rein),
        )

    def _normalised(self, x: Tensor) -> Tensor:
        if self.input_range == "unit":
            x = scale_to_unit(x) if self.normalisation == "minmax" else imagenet_normalise(x)
        return published_channels(self.backbone_name, x) if self.faithful else x


def _forget_maps(network: FoundationSegmenter2D, keys: object) -> None:
    if network.feature_cache is not None:
        network.feature_cache.clear()
