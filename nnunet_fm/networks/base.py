"""Base class of all networks: pad to a legal size, use the fastest CPU kernels, return float32 logits."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from dynamic_network_architectures.architectures.abstract_arch import AbstractDynamicNetworkArchitectures
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_fm.cpu.channels_last import channels_last, use_fast_layers
from nnunet_fm.cpu.cpu_features import computes_in_bf16, gains_from_channels_last
from nnunet_fm.cpu.onednn_linear import fast_products


def cpu_autocast(device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 autocast for a CPU that gains from it, nothing elsewhere (see `cpu_features.computes_in_bf16`)."""
    if device.type == "cpu" and computes_in_bf16():
        return torch.autocast("cpu", dtype=torch.bfloat16)
    return nullcontext()


def _leave_autocast(convolution: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Forward pre-hook: leave autocast where oneDNN fails in bfloat16 (see `guard_convolutions`)."""
    (x,) = args
    if (
        x.device.type != "cpu"
        or x.shape[-3] != 2
        or not torch.is_grad_enabled()
        or not torch.is_autocast_enabled("cpu")
    ):
        return None
    convolution.left_autocast = True  # type: ignore[assignment]
    torch.set_autocast_enabled("cpu", False)
    return (x.float(),)


def _enter_autocast(convolution: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
    if convolution.left_autocast:
        convolution.left_autocast = False  # type: ignore[assignment]
        torch.set_autocast_enabled("cpu", True)


def guard_convolutions(network: nn.Module) -> None:
    """Train 3D convolutions of feature maps with two slices in float32 on a CPU.

    With a kernel of depth 3 and a feature map of depth 2, oneDNN's gradient of the weights in bfloat16 is noise or NaN,
    because it reads uninitialised memory (seen with PyTorch 2.14). Bottlenecks of patches of 64 voxels have this depth.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv3d) and module.kernel_size[0] == 3 and not hasattr(module, "left_autocast"):
            module.left_autocast = False  # type: ignore[assignment]
            module.register_forward_pre_hook(_leave_autocast)
            module.register_forward_hook(_enter_autocast, always_call=True)


class FoundationNetwork(AbstractDynamicNetworkArchitectures):
    """Base of all networks: ``(B, C, [Z,] Y, X)`` in, float32 logits ``(B, K, [Z,] Y, X)`` out, any spatial size.

    A subclass implements `forward_logits` for sizes that are multiples of `size_multiple`, sets the keys that
    dynamic-network-architectures declares (``key_to_encoder``, ``key_to_stem``, ``keys_to_in_proj``,
    ``key_to_lpe``) and, if it has several outputs in training, `deep_supervision_scales`.

    With `deep_supervision` on and more than one scale, the output is a list, full resolution first.
    """

    key_to_head: Sequence[str] = ()
    """Prefixes of the parameters that depend on the number of classes."""
    deep_supervision: bool = False
    frozen: tuple[str, ...] = ()
    """Submodules that an adapter keeps in eval mode, so that batch statistics do not change and dropout is off."""

    adapter_arguments: Mapping[str, Mapping[str, Any]] = {}
    """Name of an adapter -> arguments that differ from its defaults."""

    reversed_axes: bool = False
    """Whether the weights were trained on axes (x, y, z), the order of MONAI's readers; nnU-Net's is (z, y, x)."""

    convolutional: bool = False
    """Whether 3D convolutions take most of the time, so that a CPU gains from the channels-last order."""

    load_report: object | None = None
    """Load report, if `nnunet_fm.create_model` has loaded official files."""

    _channels_last: bool = False

    @classmethod
    def resolve_arguments(
        cls, arguments: Mapping[str, Any], *, patch_size: Sequence[int], spacing: Sequence[float]
    ) -> dict[str, Any]:
        """Resolve the arguments of a model card to constructor arguments for a plan.

        Args:
            arguments: arguments of the card, which may be ``auto``.
            patch_size: patch of the plan in voxels, one size per axis.
            spacing: spacing of the plan in mm, same axes.
        """
        return dict(arguments)

    def refit(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Fit weights of the same network in another geometry to this one; tensors that fit are unchanged.

        Raises:
            ValueError: for weights of another network.
        """
        convert = getattr(self, "from_official", None)
        return dict(state_dict) if convert is None else dict(convert(dict(state_dict)))

    @property
    def encoder_keys(self) -> tuple[str, ...]:
        """Names of the submodules and parameters that make up the pre-trained encoder."""
        return (self.key_to_encoder,)

    @property
    def unused_keys(self) -> tuple[str, ...]:
        """Submodules without effect on any output, kept for official names; `requires_grad_` never trains them."""
        return ()

    @property
    def find_unused_parameters(self) -> bool:
        """Whether some trained parameters get no gradient, the argument of DistributedDataParallel."""
        return False

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay beside norms and biases, such as position embeddings."""
        return set()

    def wrap_loss(self, loss: nn.Module, *, regions: bool = False) -> nn.Module:
        """Wrap the recipe's loss of one output into the training loss ``(outputs, target) -> scalar``.

        Args:
            loss: loss of the recipe.
            regions: whether labels are overlapping regions (sigmoid) instead of exclusive classes (softmax).
        """
        return loss

    def requires_grad_(self, requires_grad: bool = True) -> FoundationNetwork:
        super().requires_grad_(requires_grad)
        for key in self.unused_keys:
            self.get_submodule(key).requires_grad_(False)
        return self

    def compute_channels_last(self) -> None:
        """Compute volumes channels-last where a CPU gains from it; results stay the same."""
        use_fast_layers(self)
        self._channels_last = True

    def reorders(self, device: torch.device) -> bool:
        """Whether volumes on this device are computed channels-last; a compiler chooses the order by itself."""
        allowed = self._channels_last and device.type == "cpu" and not torch.compiler.is_compiling()
        return allowed and gains_from_channels_last()

    def train(self, mode: bool = True) -> FoundationNetwork:
        super().train(mode)
        for key in self.frozen:
            self.get_submodule(key).eval()
        return self

    @property
    def decoder(self) -> nn.Module:
        """This network: stock nnU-Net sets the flag ``deep_supervision`` of the module of this name."""
        return self

    @property
    @abstractmethod
    def size_multiple(self) -> tuple[int, ...]:
        """Number of which the input's size must be a multiple, for each axis."""

    @property
    def several_outputs(self) -> bool:
        """Whether a forward pass returns all outputs as a list in the present mode; else it returns the first."""
        return self.deep_supervision

    @property
    def deep_supervision_scales(self) -> list[list[float]] | None:
        """Size of each output relative to the input, one list per output; None: one full-size output."""
        return None

    def legal_size(self, size: Sequence[int]) -> list[int]:
        """Smallest legal size that an input of this size can be padded to, in voxels per axis.

        The coarsest feature map keeps at least two elements per channel, because norms refuse a single one.
        """
        legal = [-(-length // step) * step for length, step in zip(size, self.size_multiple, strict=True)]
        if legal == list(self.size_multiple):
            legal[-1] *= 2
        return legal

    @abstractmethod
    def forward_logits(self, x: Tensor) -> list[Tensor]:
        """Logits for a legal input ``(B, C, …)``, full resolution first; only the first without deep supervision."""

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        if self.reversed_axes:
            x = x.transpose(2, 4)
        size = x.shape[2:]
        legal = self.legal_size(size)
        padding = [p for old, new in zip(reversed(size), reversed(legal), strict=True) for p in (0, new - old)]
        if any(padding):
            x = F.pad(x, padding, mode="replicate")
        reordered = x.ndim == 5 and self.reorders(x.device)
        if reordered:
            x = channels_last(x)
        with cpu_autocast(x.device), fast_products(x.device):
            if torch.is_grad_enabled() and torch.is_autocast_enabled("cpu"):
                guard_convolutions(self)
            outputs = self.forward_logits(x)
        if any(padding):
            outputs = [_crop(out, size, legal) for out in outputs]
        if self.reversed_axes:
            outputs = [out.transpose(2, 4).contiguous() for out in outputs]
        if x.device.type == "cpu":
            outputs = [out.float() for out in outputs]
        if reordered:
            outputs = [out.contiguous() for out in outputs]
        return outputs if self.several_outputs and len(outputs) > 1 else outputs[0]


def _crop(out: Tensor, size: Sequence[int], legal: Sequence[int]) -> Tensor:
    """Crop the padding off an output of any resolution; sizes are rounded like nnU-Net's training targets."""
    sizes = [round(length * o / full) for length, o, full in zip(size, out.shape[2:], legal, strict=True)]
    return out[tuple([slice(None)] * 2 + [slice(0, length) for length in sizes])]
