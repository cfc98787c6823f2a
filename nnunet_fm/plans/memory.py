"""Prediction of a training step's memory without computing it, and the largest patch and batch that fit.

A step runs on PyTorch's meta device, where tensors have sizes but no content, and the bytes of all storages are counted
while they live. So the count includes everything that autograd saves for the backward pass, for any network.

On the CPU the count, including the copies of convolutions, is within 10 % of the memory in use. With small patches a
process can hold up to twice as much, because glibc keeps freed blocks below 32 MB unless ``MALLOC_MMAP_THRESHOLD_`` is
set.
"""

from __future__ import annotations

import weakref
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nnunet_fm.networks.base import FoundationNetwork

Cost = Callable[[tuple[int, ...], int], float]
"""``(patch size, batch size) -> bytes``."""

OPTIMIZER_STATES = {"sgd": 1, "adam": 2, "adamw": 2}
"""Number of tensors that an optimiser stores per parameter: momentum; first and second moment."""

OPTIMIZER_TEMPORARIES = 1
"""Copies of all gradients during the step of PyTorch's multi-tensor optimisers, after activations are freed."""

GPU_FACTOR = 1.0
"""Memory on a GPU divided by the prediction; 1 until measured. Half-precision activations need less than the float32
count, workspaces of convolutions and gaps of the caching allocator need more."""

GPU_CONTEXT = 512 * 2**20
"""Bytes of the CUDA context and of loaded kernels in every process."""

CPU_BLOCK = 16
"""Channels per block in the layouts of oneDNN's convolutions on CPUs with AVX-512 (nChw16c, nCdhw16c)."""


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of one training step.

    Attributes:
        parameters: parameters and buffers.
        gradients: gradients of all trained parameters.
        optimizer: state of the optimiser.
        activations: peak of all other tensors, including input, target and loss.
        growth: peak of activations and gradients together, which is less than the sum of both peaks.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    growth: int

    @property
    def total(self) -> int:
        """Peak over forward pass, backward pass and the optimiser's step."""
        step = self.gradients * (1 + OPTIMIZER_TEMPORARIES)
        return self.parameters + self.optimizer + max(self.growth, step)


def training_memory(
    build: Callable[[], nn.Module],
    patch_size: Sequence[int],
    batch_size: int,
    in_channels: int,
    optimizer: str = "sgd",
    *,
    cpu: bool = False,
) -> TrainingMemory:
    """Predict the memory of a float32 training step with Dice and cross-entropy loss.

    Args:
        build: function that builds the network; called with the meta device as default, so that it takes no memory.
        patch_size: patch size in voxels, ``(Z, Y, X)`` or ``(Y, X)``.
        batch_size: patches per step.
        in_channels: image channels.
        optimizer: a key of `OPTIMIZER_STATES`.
        cpu: whether to count the copies of convolutions on the CPU (`_convolution_copies`); there are none in
            channels-last order.
    """
    with torch.device("meta"):
        network = build().train()
        image = torch.empty(batch_size, in_channels, *patch_size)
    copies = cpu and not (len(patch_size) == 3 and _computes_channels_last(network))
    counter = _LiveBytes([*network.parameters(), *network.buffers()], _convolution_copies if copies else None)
    trained = [p for p in network.parameters() if p.requires_grad]
    counter.add(image)
    with counter, _FusedAttention(), counter.apart(trained):
        training_loss(network(image)).backward()
    sizes = [p.numel() * p.element_size() for p in trained]
    return TrainingMemory(
        parameters=sum(t.numel() * t.element_size() for t in (*network.parameters(), *network.buffers())),
        gradients=sum(sizes),
        optimizer=sum(sizes) * OPTIMIZER_STATES[optimizer],
        activations=counter.peak_apart,
        growth=counter.peak,
    )


def _computes_channels_last(network: nn.Module) -> bool:
    return isinstance(network, FoundationNetwork) and network.reorders(torch.device("cpu"))


def training_loss(outputs: Tensor | list[Tensor]) -> Tensor:
    """nnU-Net's Dice and cross-entropy of one output or several, ``(B, K, [Z,] Y, X)``, against an empty target."""
    dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    loss = DC_and_CE_loss(dice, {}, dice_class=MemoryEfficientSoftDiceLoss)
    levels = [outputs] if isinstance(outputs, Tensor) else outputs
    targets = [torch.zeros(len(out), 1, *out.shape[2:], device=out.device) for out in levels]
    return torch.stack([loss(out, target) for out, target in zip(levels, targets, strict=True)]).sum()


def gpu_bytes(
    build: Callable[[], nn.Module], patch_size: Sequence[int], batch_size: int, in_channels: int, optimizer: str
) -> float:
    """Predicted bytes of a training step on a GPU; arguments as in `training_memory`."""
    predicted = training_memory(build, patch_size, batch_size, in_channels, optimizer)
    return GPU_FACTOR * predicted.total + GPU_CONTEXT


def fit(
    cost: Cost,
    patch: tuple[int, ...],
    batch: int,
    shrink: Callable[[tuple[int, ...]], tuple[int, ...] | None],
    target_bytes: float,
) -> tuple[tuple[int, ...], int, bool]:
    """Find the first step that fits in a sequence in which first the batch falls to one, then the patch shrinks.

    The sequence does not depend on the target, so that a smaller target never gives a larger plan. The cost falls along
    the sequence, so that the step is found by bisection.

    Args:
        cost: bytes of a patch and a batch size.
        patch: first patch in voxels.
        batch: first batch size.
        shrink: function that returns the next smaller legal patch; None for the smallest.
        target_bytes: memory target.

    Returns:
        Patch, batch, and whether they fit; if nothing fits, the last step of the sequence.
    """
    if cost(patch, batch) <= target_bytes:
        return patch, batch, True
    steps = list(_descending(patch, batch, shrink))
    first = bisect_left(steps, True, key=lambda step: cost(*step) <= target_bytes)
    return (*steps[first], True) if first < len(steps) else (*steps[-1], False)


def _descending(
    patch: tuple[int, ...], batch: int, shrink: Callable[[tuple[int, ...]], tuple[int, ...] | None]
) -> Iterator[tuple[tuple[int, ...], int]]:
    for fewer in range(batch, 0, -1):
        yield patch, fewer
    while (smaller := shrink(patch)) is not None:
        patch = smaller
        yield patch, 1


class _LiveBytes(TorchDispatchMode):
    """Count the bytes of all live storages, which operators create and autograd frees.

    Args:
        known: tensors that are counted elsewhere.
        transient: function from an operator's name, arguments and result to the bytes that it needs while it runs.
    """

    def __init__(self, known: Sequence[Tensor], transient: Callable[[str, Any, Any], int] | None) -> None:
        super().__init__()
        self.peak = self.peak_apart = self._live = self._apart = 0
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in known}
        self._set_apart: set[int] = set()
        self._transient = transient

    def add(self, tensor: Tensor) -> None:
        """Count a tensor's storage once, while it is alive."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self._live += storage.nbytes()
            weakref.finalize(storage, self._remove, key).atexit = False

    @contextmanager
    def apart(self, parameters: Sequence[Tensor]) -> Iterator[None]:
        """Keep the gradients of these parameters out of `peak_apart`."""
        hooks = [p.register_post_accumulate_grad_hook(self._take_apart) for p in parameters]
        yield
        for hook in hooks:
            hook.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        transient = self._transient(func.overloadpacket.__name__, args, out) if self._transient else 0
        self.peak = max(self.peak, self._live + transient)
        self.peak_apart = max(self.peak_apart, self._live + transient - self._apart)
        return out

    def _take_apart(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        key = parameter.grad.untyped_storage()._cdata
        if key not in self._set_apart:
            self._set_apart.add(key)
            self._apart += self._sizes[key]

    def _remove(self, key: int) -> None:
        size = self._sizes.pop(key)
        self._live -= size
        if key in self._set_apart:
            self._set_apart.discard(key)
            self._apart -= size


class _FusedAttention(TorchFunctionMode):
    """Run attention like the fused kernels of CPU and GPU, which store no attention matrix.

    On the meta device PyTorch would use the plain formula. There is no fused kernel for a trained mask.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        return func(*args, **kwargs)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **kwargs: Any,
) -> Tensor:
    if dropout_p or (attn_mask is not None and attn_mask.requires_grad):
        return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, **kwargs)
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out: Tensor = fused(query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=kwargs.get("scale"))[0]
    return out


def _convolution_copies(name: str, args: Any, out: Any) -> int:
    """Bytes that a convolution needs while it runs on the CPU: copies of its operands in oneDNN's layouts.

    Forward: input and output. Backward: the output's gradient and, one after the other, the input's gradient and the
    input. Unstrided convolutions round channels up to `CPU_BLOCK`, except fewer input channels; strided and transposed
    ones only move channels last. On one thread PyTorch computes unstrided 1x1 convolutions as matrix products, with one
    copy of the input's gradient.
    """
    if name not in ("convolution", "convolution_backward"):
        return 0
    backward = name == "convolution_backward"
    image, weight = args[1:3] if backward else args[:2]
    stride, transposed = (args[4], args[7]) if backward else (args[3], args[6])
    strided = transposed or max(stride) > 1
    if torch.get_num_threads() == 1 and not strided and max(weight.shape[2:]) == 1:
        return image.nbytes if backward else 0
    size = _plain if strided else _blocked
    source = size(image) if image.shape[1] >= CPU_BLOCK else 0
    if not backward:
        return source + size(out)
    return size(args[0]) + max(source, size(out[0]) if out[0] is not None else 0)


def _plain(tensor: Tensor) -> int:
    return tensor.nbytes


def _blocked(tensor: Tensor) -> int:
    channels = tensor.shape[1]
    return tensor.nbytes // channels * (-(-channels // CPU_BLOCK) * CPU_BLOCK)
