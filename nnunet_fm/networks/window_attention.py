"""MONAI's window attention without a stored attention matrix: same parameters, same results, less time."""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.nets import swin_unetr
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class WindowAttention(swin_unetr.WindowAttention):
    """Attention among the tokens of a window, with a learned bias for each relative position.

    As in MONAI, a window of n tokens that is smaller than the full one uses the first n rows and columns of the index
    of relative positions, which are not those of a smaller window.
    """

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attend within windows.

        Args:
            x: tokens ``(B * W, N, C)`` of W windows for each sample.
            mask: added to the scores, ``(W, N, N)``; None without.
        """
        n = x.shape[1]
        windows = x.shape[0] if mask is None else mask.shape[0]
        index = self.relative_position_index[:n, :n].flatten()
        # `index_select`, because the gradient of table[index] takes ten times as long.
        bias = self.relative_position_bias_table.t().index_select(1, index).view(-1, n, n)
        qkv = self.qkv(x).unflatten(0, (-1, windows)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = qkv.permute(3, 0, 1, 4, 2, 5)
        out = attend(query, key, value, bias, mask)
        return self.proj(out.transpose(2, 3).reshape(x.shape))


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
    """``softmax(query key^T / sqrt(D) + bias + mask) value`` in every window.

    Args:
        query, key, value: ``(B, W, H, N, D)`` for W windows and H heads.
        bias: ``(H, N, N)``, the same in all windows.
        mask: ``(W, N, N)``, the same for all heads, or None.
    """
    if query.device.type in ("cpu", "meta"):  # a plan's memory is predicted on the meta device
        out: Tensor = _WindowByWindow.apply(query, key, value, bias, mask)
        return out
    return all_windows(query, key, value, bias, mask)


def all_windows(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
    """`attend` with one call, for devices with a fused kernel that computes the gradient of the bias."""
    if mask is None:
        dims, scores = (0, 1), bias[None]
    else:
        dims, scores = (1, 2), (bias + mask[:, None]).flatten(0, 1)[None]
    q, k, v = (t.flatten(*dims) for t in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=scores).reshape(query.shape)


def _windows(query: Tensor) -> range:
    """Indices of all windows; on the meta device, where only sizes count, one."""
    return range(1 if query.is_meta else query.shape[1])


class _WindowByWindow(torch.autograd.Function):
    """`attend` on the CPU, whose fused kernel has no gradient of the bias and no mask per window.

    Scores of one window fit into the CPU's cache; they are computed again in the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
        out = torch.empty_like(query)
        with torch.autocast("cpu", enabled=False):  # autocast would round the bias
            for w in _windows(query):
                added = bias.detach() if mask is None else bias.detach() + mask[w]
                out[:, w] = F.scaled_dot_product_attention(query[:, w], key[:, w], value[:, w], attn_mask=added[None])
        ctx.save_for_backward(query, key, value, bias, mask, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, bias, mask, out = ctx.saved_tensors
        scale = query.shape[-1] ** -0.5
        precision = torch.promote_types(query.dtype, torch.float32)
        d_query, d_key, d_value = (torch.empty_like(t) for t in (query, key, value))
        d_bias = torch.zeros_like(bias)
        for w in _windows(query):
            q, k, v, o, g = (t[:, w].to(precision) for t in (query, key, value, out, grad))
            q = q * scale
            scores = q @ k.transpose(-2, -1)
            scores += bias if mask is None else bias + mask[w]
            weights = scores.softmax(-1)
            d_value[:, w] = weights.transpose(-2, -1) @ g
            d_scores = g @ v.transpose(-2, -1)
            d_scores -= (g * o).sum(-1, keepdim=True)
            d_scores *= weights
            d_bias += d_scores.sum(0)
            d_query[:, w] = (d_scores @ k).mul_(scale)
            d_key[:, w] = d_scores.transpose(-2, -1) @ q
        return d_query, d_key, d_value, d_bias, None
