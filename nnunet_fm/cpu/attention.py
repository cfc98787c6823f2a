"""Self-attention of vision transformers in bfloat16 on a CPU, by plain matrix products.

PyTorch's fused kernel stores no scores, but takes twice the time of products in bfloat16. Without gradients, the scores
of a few heads at a time fit into the CPU's cache. They are rounded to bfloat16, like under autocast.
"""

from __future__ import annotations

import torch
from timm.layers.attention import Attention
from torch import Tensor, nn
from torch.nn import functional as F

SCORES = 2**19
"""Largest number of scores in one product, 1 MB; a head with more is computed alone."""


def use_fast_attention(network: nn.Module) -> None:
    """Replace the self-attention of timm's vision transformers in a network by that of this file, in place."""
    for module in network.modules():
        if type(module) is Attention:
            module.__class__ = FastAttention


class FastAttention(Attention):
    """timm's attention of tokens ``(B, N, C)``, by `attend` if that is faster."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        images, tokens, channels = x.shape
        qkv = self.qkv(x)
        stored = torch.is_grad_enabled() and qkv.requires_grad
        q, k, v = qkv.reshape(images, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        dropout = self.attn_drop.p if self.training else 0.0
        plain = attn_mask is None and not dropout and not stored
        if plain and v.device.type == "cpu" and v.dtype == q.dtype == torch.bfloat16:
            out = attend(q, k, v)
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout)
        out = out.transpose(1, 2).reshape(images, tokens, channels)
        return self.proj_drop(self.proj(self.norm(out)))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``F.scaled_dot_product_attention(q, k, v)`` of ``(B, heads, N, channels)``, a few heads at a time."""
    shape = q.shape
    q, k, v = (x.reshape(-1, *shape[2:]) for x in (q * shape[-1] ** -0.5, k, v))
    out = torch.empty_like(q)
    together = max(1, SCORES // shape[2] ** 2)
    for start in range(0, len(q), together):
        heads = slice(start, start + together)
        weights = torch.bmm(q[heads], k[heads].transpose(1, 2)).softmax(dim=-1)
        torch.bmm(weights, v[heads], out=out[heads])
    return out.view(shape)
