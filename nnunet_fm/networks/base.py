"""What every network does alike: pad to a legal size, compute as a CPU does best, return float32."""

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
    """bfloat16 autocast for a CPU that gains from it, nothing elsewhere (see `processor.computes_in_bf16`)."""
    if device.type == "cpu" and computes_in_bf16():
        return torch.autocast("cpu", dtype=torch.bfloat16)
    return nullcontext()


def _leave_autocast(convolution: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Before a convolution: compute in float32 what oneDNN gets wrong in bfloat16 (`guard_convolutions`)."""
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
    """Keep 3D convolutions of maps with two slices in float32 while they are trained on a CPU.

    In bfloat16 oneDNN reads memory it never wrote for the weights' gradient of a convolution with a kernel of depth 3
    over a map of depth 2 (seen with PyTorch 2.14): the gradient is noise then, or NaN. Such maps are the bottlenecks of
    patches of 64 voxels in networks that halve them five times.
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
    """Submodules that an adapter keeps in eval mode, so that their statistics and dropout stay as pre-trained."""

    adapter_arguments: Mapping[str, Mapping[str, Any]] = {}
    """Name of an adapter -> arguments that differ from its own."""

    reversed_axes: bool = False
    """Whether the weights know images as (x, y, z), as MONAI's readers give them, while nnU-Net's are (z, y, x)."""

    convolutional: bool = False
    """Whether convolutions of volumes take most of the time, so that a CPU gains from the channels-last order."""

    load_report: object | None = None
    """What became of every tensor of the official files, where `nnunet_fm.create_model` has loaded them."""

    _channels_last: bool = False

    @classmethod
    def resolve_arguments(
        cls, arguments: Mapping[str, Any], *, patch_size: Sequence[int], spacing: Sequence[float]
    ) -> dict[str, Any]:
        """Constructor arguments of a plan from those of the model card.

        Args:
            arguments: the card's; may hold values such as ``auto``.
            patch_size: the plan's, in voxels, one edge per axis.
            spacing: the plan's, in mm, same axes.
        """
        return dict(arguments)

    def refit(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of such a network in another geometry, under its own names, fitted to this one's; others as they are.

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
        """Submodules that no output depends on, there for the official names only; `requires_grad_` leaves them off."""
        return ()

    @property
    def find_unused_parameters(self) -> bool:
        """Whether some trained parameters get no gradient, so that DistributedDataParallel must look for them."""
        return False

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that never decay beside norms and biases, such as position embeddings."""
        return set()

    def wrap_loss(self, loss: nn.Module, *, regions: bool = False) -> nn.Module:
        """Wrap the recipe's loss of one output into the training loss ``(outputs, target) -> scalar``.

        Args:
            loss: of the recipe.
            regions: whether labels are regions that may overlap (sigmoid), not exclusive classes (softmax).
        """
        return loss

    def requires_grad_(self, requires_grad: bool = True) -> FoundationNetwork:
        super().requires_grad_(requires_grad)
        for key in self.unused_keys:
            self.get_submodule(key).requires_grad_(False)
        return self

    def compute_channels_last(self) -> None:
        """Compute volumes channels-last from now on, where a CPU gains from it; nothing else changes."""
        use_fast_layers(self)
        self._channels_last = True

    def reorders(self, device: torch.device) -> bool:
        """Whether volumes on this device are computed channels-last; a compiler chooses the order itself."""
        allowed = self._channels_last and device.type == "cpu" and not torch.compiler.is_compiling()
        return allowed and gains_from_channels_last()

    def train(self, mode: bool = True) -> FoundationNetwork:
        super().train(mode)
        for key in self.frozen:
            self.get_submodule(key).eval()
        return self

    @property
    def decoder(self) -> nn.Module:
        """The module whose ``deep_supervision`` flag stock nnU-Net sets: this one."""
        return self

    @property
    @abstractmethod
    def size_multiple(self) -> tuple[int, ...]:
        """Each spatial edge must be a multiple of this; one entry per axis."""

    @property
    def several_outputs(self) -> bool:
        """Whether a call returns all outputs as a list, now; else it returns the first."""
        return self.deep_supervision

    @property
    def deep_supervision_scales(self) -> list[list[float]] | None:
        """Size of each output relative to the input, one list per output; None: one full-size output."""
        return None

    def legal_size(self, size: Sequence[int]) -> list[int]:
        """Smallest size that the network takes and an input of `size` fits into, one edge per axis.

        Normalisation refuses a single element per channel, so the coarsest feature map keeps at least two.
        """
        legal = [-(-edge // step) * step for edge, step in zip(size, self.size_multiple, strict=True)]
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
        padding = [p for edge, full in zip(reversed(size), reversed(legal), strict=True) for p in (0, full - edge)]
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
    """Cut the padded part off an output of any resolution, rounding as nnU-Net does for its training targets."""
    edges = [round(edge * o / full) for edge, o, full in zip(size, out.shape[2:], legal, strict=True)]
    return out[tuple([slice(None)] * 2 + [slice(0, edge) for edge in edges])]
