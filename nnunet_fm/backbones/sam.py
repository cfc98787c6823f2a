"""The image encoder of Segment Anything (SAM, Kirillov et al., arXiv 2304.02643), which MedSAM shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from timm.layers import Mlp, PatchEmbed
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_fm.backbones.base import Backbone, Norm, Refine
from nnunet_fm.errors import InvalidValueError

PATCH_SIZE = 16
EPSILON = 1e-6
OFFICIAL_PREFIX = "image_encoder."
FEW_TOKENS = 1024
"""Most tokens for which a CPU trains with an attention matrix. At 196 tokens that is three times as fast as the fused
kernel in bfloat16; at 4096 tokens the matrices kept for the backward pass would take 0.8 GB per image."""
ROWS = 256
"""Rows of the attention matrix that a CPU computes at a time."""


class SamAttention(nn.Module):
    """Self-attention with decomposed relative positions, over all tokens or within windows.

    The bias of query (y, x) and key (y', x') is q . rel_pos_h[y - y'] + q . rel_pos_w[x - x']. Further channels make it
    a part of the product of queries and keys, so that no matrix of biases is computed: the query's further channels
    are its products with the relative positions of all rows and columns, the key's are one-hot codes of its row and
    column.

    Args:
        dim: channels of a token.
        num_heads: number of heads.
        grid: ``(h, w)`` of the tokens.
        window: size in tokens of the square windows, which start at the upper left corner and are padded; None for
            global attention.
    """

    def __init__(self, dim: int, num_heads: int, grid: tuple[int, int], window: int | None = None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.grid = grid
        self.window_size = grid if window is None else (window, window)
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * self.window_size[0] - 1, dim // num_heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * self.window_size[1] - 1, dim // num_heads))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``(B, h * w, C)`` -> the same shape."""
        qkv = self.qkv(x)
        if self.window_size == self.grid:
            return self.proj(self._attend(qkv))
        # Officially windows are padded with zeros before `qkv`: padding gets the queries, keys and values of zero.
        padding = self.qkv(x.new_zeros(1, x.shape[2]))
        return self.proj(self._from_windows(self._attend(self._to_windows(qkv, padding))))

    def _attend(self, qkv: Tensor) -> Tensor:
        """``(B, N, 3 * C)`` -> ``(B, N, C)`` for the N tokens of a window."""
        h, w = self.window_size
        q, k, v = qkv.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        tokens, channels = q.shape[2:]
        q_grid = q.unflatten(2, (h, w))
        bias_h = torch.einsum("bnyxc,yzc->bnyxz", q_grid, _by_distance(self.rel_pos_h, h))
        bias_w = torch.einsum("bnyxc,xzc->bnyxz", q_grid, _by_distance(self.rel_pos_w, w))
        row_one_hot = torch.eye(h, dtype=k.dtype, device=k.device).repeat_interleave(w, dim=0)
        column_one_hot = torch.eye(w, dtype=k.dtype, device=k.device).repeat(h, 1)
        position_one_hot = torch.cat((row_one_hot, column_one_hot), dim=1).expand(*k.shape[:2], -1, -1)
        q = torch.cat((q * self.scale, bias_h.flatten(2, 3), bias_w.flatten(2, 3)), dim=3)
        k = torch.cat((k, position_one_hot), dim=3)
        if q.device.type == "cpu" and q.dtype == torch.float32 and not torch.is_grad_enabled():
            out = _head_by_head(q, k, v)
        elif q.device.type == "cpu" and (tokens <= FEW_TOKENS or not torch.is_grad_enabled()):
            keys = k.transpose(2, 3)
            out = torch.cat([(rows @ keys).softmax(dim=3) @ v for rows in q.split(ROWS, dim=2)], dim=2)
        else:  # the fused kernel needs values with as many channels as keys
            out = F.scaled_dot_product_attention(q, k, F.pad(v, (0, h + w)), scale=1.0)[..., :channels]
        return out.transpose(1, 2).flatten(2)

    def _to_windows(self, x: Tensor, padding: Tensor) -> Tensor:
        """``(B, h * w, D)`` and ``(1, D)`` -> ``(B * windows, size * size, D)``."""
        (h, w), (size, _) = self.grid, self.window_size
        below, right = -h % size, -w % size
        x = x.unflatten(1, (h, w))
        if right:
            x = torch.cat((x, padding.expand(len(x), h, right, -1)), dim=2)
        if below:
            x = torch.cat((x, padding.expand(len(x), below, w + right, -1)), dim=1)
        x = x.unflatten(2, (-1, size)).unflatten(1, (-1, size))
        return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)

    def _from_windows(self, x: Tensor) -> Tensor:
        """``(B * windows, size * size, D)`` -> ``(B, h * w, D)``."""
        (h, w), (size, _) = self.grid, self.window_size
        x = x.unflatten(1, (size, size)).unflatten(0, (-1, -(-h // size), -(-w // size)))
        return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, :h, :w].flatten(1, 2)


class SamBlock(nn.Module):
    """Pre-norm transformer block; arguments as for `SamAttention`."""

    def __init__(self, dim: int, num_heads: int, grid: tuple[int, int], window: int | None = None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPSILON)
        self.attn = SamAttention(dim, num_heads, grid, window)
        self.norm2 = nn.LayerNorm(dim, eps=EPSILON)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``(B, h * w, C)`` -> the same shape."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class SAM(Backbone):
    """SAM's image encoder for images of one size, without its neck, which belongs to the head (see `Backbone.neck`).

    Args:
        embed_dim: channels of a token.
        depth: number of blocks.
        num_heads: heads of each attention.
        global_blocks: indices of the blocks with global attention.
        window: size in tokens of the windows of the other blocks.
        image_size: size in pixels, or ``(Y, X)``; multiples of 16. Officially 1024.

    Raises:
        ValueError: if a size is no multiple of 16.
    """

    patch_size = PATCH_SIZE
    native_size = 1024
    key_to_patch_embed = "patch_embed"
    keys_to_in_proj = ("patch_embed.proj",)
    key_to_lpe = "pos_embed"
    takes_neck = True

    def __init__(
        self,
        embed_dim: int,
        depth: int,
        num_heads: int,
        global_blocks: Sequence[int],
        *,
        window: int = 14,
        image_size: int | tuple[int, int],
    ) -> None:
        super().__init__()
        sizes = (image_size, image_size) if isinstance(image_size, int) else image_size
        if any(length < PATCH_SIZE or length % PATCH_SIZE for length in sizes):
            raise InvalidValueError(
                f"SAM takes image sizes that are multiples of {PATCH_SIZE}, got {image_size}", code="image-edges"
            )
        self.embed_dim = embed_dim
        self.depth = depth
        self.grid = grid = (sizes[0] // PATCH_SIZE, sizes[1] // PATCH_SIZE)
        self.early_block = min(global_blocks)
        self.patch_embed = PatchEmbed(sizes, PATCH_SIZE, embed_dim=embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, *grid, embed_dim))
        self.blocks = nn.ModuleList(
            SamBlock(embed_dim, num_heads, grid, None if index in global_blocks else window) for index in range(depth)
        )

    def features(
        self, x: Tensor, blocks: Sequence[int], *, norm: Norm | None = None, refine: Refine | None = None
    ) -> list[Tensor]:
        """See `Backbone.features`; SAM has no final norm, so that ``norm`` has no effect."""
        tokens = self.patch_embed(x).contiguous() + self.pos_embed.flatten(1, 2)  # later sums keep this memory layout
        by_block: dict[int, Tensor] = {}
        for index in range(max(blocks) + 1):
            tokens = self.blocks[index](tokens)
            if refine is not None:
                tokens = refine(index, tokens)
            if index in blocks:
                out = tokens.transpose(1, 2).unflatten(2, self.grid)
                by_block[index] = self.neck(out) if self.neck is not None and index == self.depth - 1 else out
        return [by_block[block] for block in blocks]

    def refit(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.from_official(state_dict)

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert the state dict of a whole SAM or of its image encoder; positions are fitted to the image size.

        The position embedding is resized bilinearly (thesis), tables of relative positions linearly (official code).
        The neck is left out unless this module has it.
        """
        own = dict(self.named_parameters())
        ours = {}
        for official, tensor in state_dict.items():
            name = official.removeprefix(OFFICIAL_PREFIX).replace(".mlp.lin", ".mlp.fc")
            if name.startswith("neck.") and self.neck is None:
                continue
            if name == "pos_embed":
                tensor = resize_positions(tensor, self.grid)
            elif name in own and name.endswith((".rel_pos_h", ".rel_pos_w")):
                tensor = resize_table(tensor, len(own[name]))
            ours[name] = tensor
        return ours


def resize_positions(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize position embeddings ``(1, H, W, C)`` to ``(h, w)``, bilinearly and without antialiasing (thesis)."""
    if tuple(positions.shape[1:3]) == grid:
        return positions
    image = positions.float().permute(0, 3, 1, 2)
    return F.interpolate(image, size=grid, mode="bilinear").permute(0, 2, 3, 1).to(positions.dtype)


def resize_table(table: Tensor, length: int) -> Tensor:
    """Resize embeddings ``(L, C)`` of relative positions, sorted from negative to positive, to another length."""
    if len(table) == length:
        return table
    return F.interpolate(table.float().T[None], size=length, mode="linear")[0].T.to(table.dtype)


def _head_by_head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``softmax(q k^T) v`` of ``(B, heads, N, C)``, by products small enough for a CPU's cache.

    `F.linear` is used because `fast_products` speeds it up.
    """
    out = v.new_empty(v.shape)
    for queries, keys, values, into in zip(*(x.flatten(0, 1) for x in (q, k, v)), out.flatten(0, 1), strict=True):
        for rows, of_rows in zip(queries.split(ROWS), into.split(ROWS), strict=True):
            of_rows.copy_(F.linear(F.linear(rows, keys).softmax(dim=1), values.t()))
    return out


def _by_distance(table: Tensor, length: int) -> Tensor:
    """``(2 * length - 1, C)`` -> ``(query, key, C)``: the entry of each pair's distance."""
    positions = torch.arange(length, device=table.device)
    return table[positions[:, None] - positions + length - 1]
