"""A pre-norm transformer encoder whose last position can be computed alone.

Recommenders read the last position of the output. `Encoder.last` computes the last block for that position alone. A
causal encoder that is called repeatedly with a new last token reuses the keys and values of the earlier tokens
(`Encoder.prefill`, `Encoder.advance`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rediffuse.errors import ConfigError
from rediffuse.nn.dropout import dropout

Cache = list[tuple[Tensor, Tensor]]


class Block(nn.Module):
    """Self-attention and a feed-forward layer, each pre-normed with a residual (Xiong et al. 2020).

    With ``gated``, a layer of LiGR (Borisyuk et al. 2025, arXiv 2502.03417) as in eSASRec (Tikhonovich et al. 2025,
    arXiv 2508.06450): x + sigmoid(gate(x)) * f(norm(x)), where the feed-forward layer is a SwiGLU without biases
    (Shazeer 2020), and no dropout on the residual itself.
    """

    def __init__(self, size: int, heads: int, dropout: float, norm_eps: float, *, gated: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.norm_attention = nn.LayerNorm(size, eps=norm_eps)
        self.qkv = nn.Linear(size, 3 * size)
        self.out = nn.Linear(size, size)
        self.norm_feed = nn.LayerNorm(size, eps=norm_eps)
        self.expand = nn.Linear(size, 4 * size, bias=not gated)
        self.contract = nn.Linear(4 * size, size, bias=not gated)
        self.linear = nn.Linear(size, 4 * size, bias=False) if gated else None
        self.gates = nn.ModuleList(nn.Linear(size, size) for _ in range(2)) if gated else None

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout, self.training)

    def _split(self, x: Tensor) -> Tensor:
        """(B, L, n d) -> (n, B, heads, L, d / heads) as views, n = 1 or 3 merged projections."""
        batch, length, width = x.shape
        size = self.out.in_features
        # No size is left to be inferred: a batch may be empty.
        return x.view(batch, length, width // size, self.heads, size // self.heads).permute(2, 0, 3, 1, 4)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        if self.training and self.dropout > 0:
            mixed = self._attend_with_dropout(q, k, v, mask, causal)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _attend_with_dropout(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """Attention as torch's fused kernel computes it under dropout, but with a faster dropout."""
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        if causal:
            mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).tril()
        if mask is not None:
            logits = logits.masked_fill(~mask, -torch.inf)
        return self._drop(torch.softmax(logits, dim=-1)) @ v

    def _feed(self, x: Tensor) -> Tensor:
        normed = self.norm_feed(x)
        if self.linear is not None:
            return self.contract(self._drop(F.silu(self.expand(normed)) * self.linear(normed)))
        return self.contract(self._drop(F.gelu(self.expand(normed), approximate="tanh")))

    def _add(self, x: Tensor, change: Tensor, layer: int) -> Tensor:
        """The residual x plus the output of the attention (layer 0) or of the feed-forward layer (1)."""
        change = self._drop(change)
        return x + (change if self.gates is None else torch.sigmoid(self.gates[layer](x)) * change)

    def _finish(self, x: Tensor) -> Tensor:
        return x if self.gates is not None else self._drop(x)

    def forward(
        self, x: Tensor, mask: Tensor | None, causal: bool, real: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The output (B, L, d) for tokens (B, L, d), and the keys and values (B, heads, L, d / heads)."""
        q, k, v = self._split(self.qkv(self.norm_attention(x)))
        if real is not None:
            q = q * real  # a zero query attends to all positions equally
        x = self._add(x, self._attend(q, k, v, mask, causal), 0)
        x = self._add(x, self._feed(x), 1)
        return self._finish(x), (k, v)

    def keys_and_values(self, normed: Tensor) -> Tensor:
        """Keys and values, stacked (2, B, heads, L, d / heads), of normalised tokens (B, L, d)."""
        size = normed.shape[-1]
        return self._split(F.linear(normed, self.qkv.weight[size:], self.qkv.bias[size:]))

    def at(self, x: Tensor, position: Tensor, mask: Tensor | None) -> Tensor:
        """The output (B, 1, d) at one position (B,) of each row; queries are computed for that position alone."""
        size = x.shape[-1]
        normed = self.norm_attention(x)
        own = _pick(normed, position)
        q = self._split(F.linear(own, self.qkv.weight[:size], self.qkv.bias[:size]))[0]
        k, v = self.keys_and_values(normed)
        y = self._add(_pick(x, position), self._attend(q, k, v, mask, causal=False), 0)
        return self._finish(self._add(y, self._feed(y), 1))

    def advance(self, x: Tensor, position: Tensor, cache: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        """The output (B, 1, d) at a token (B, 1, d) in ``position`` (B,), with cached keys and values of the others."""
        q, k, v = self._split(self.qkv(self.norm_attention(x)))
        rows = torch.arange(x.shape[0], device=x.device)
        keys, values = cache
        keys[rows, :, position], values[rows, :, position] = k[:, :, 0], v[:, :, 0]
        y = self._add(x, self._attend(q, keys, values, mask, causal=False), 0)
        return self._finish(self._add(y, self._feed(y), 1))


class Encoder(nn.Module):
    """A stack of blocks, then dropout and a LayerNorm. Rows are right-padded.

    Args:
        size: width d of the tokens.
        blocks, heads: depth and attention heads.
        dropout: rate of dropout on the attention weights, after the attention, in and after the feed-forward layer;
            unless ``gated``, also after each block and before the last LayerNorm.
        causal: whether position i sees positions j <= i only. If so, padding on the right needs no mask.
        norm_eps: epsilon of every LayerNorm.
        pads_are_keys: reproduce DiffuRec's released code: real positions attend to padding, and padded positions
            attend to all positions equally.
        gated: blocks of LiGR, see `Block`.
    """

    def __init__(
        self,
        size: int,
        blocks: int,
        heads: int,
        dropout: float,
        *,
        causal: bool,
        norm_eps: float = 1e-12,
        pads_are_keys: bool = False,
        gated: bool = False,
    ) -> None:
        super().__init__()
        if size % heads:
            raise ConfigError(f"embedding_size {size} is not a multiple of heads {heads}.", "Change one of the two.")
        self.blocks = nn.ModuleList(Block(size, heads, dropout, norm_eps, gated=gated) for _ in range(blocks))
        self.norm = nn.LayerNorm(size, eps=norm_eps)
        self.dropout = 0.0 if gated else dropout
        self.causal = causal
        self.pads_are_keys = pads_are_keys

    def _finish(self, x: Tensor) -> Tensor:
        return self.norm(dropout(x, self.dropout, self.training))

    def _key_mask(self, x: Tensor, lengths: Tensor) -> Tensor | None:
        """(B, 1, 1, L) True where a key may be attended, or None where all may."""
        if self.pads_are_keys:
            return None
        # An exported graph must hold for all lengths.
        if not torch.compiler.is_compiling() and (x.shape[1] == 1 or bool((lengths == x.shape[1]).all())):
            return None
        return _real(x, lengths)[:, None, None, :]

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """The output (B, L, d) for tokens (B, L, d), of which ``lengths`` (B,) are real; it is arbitrary at padding."""
        mask = None if self.causal else self._key_mask(x, lengths)
        for block in self.blocks:
            x, _ = block(x, mask, self.causal)
        return self._finish(x)

    def last(self, x: Tensor, lengths: Tensor) -> Tensor:
        """The output (B, d) at the last real token of each row, for tokens (B, L, d)."""
        keys = self._key_mask(x, lengths)
        real = _real(x, lengths)[:, None, :, None].to(x.dtype) if self.pads_are_keys else None
        for block in self.blocks[:-1]:
            x, _ = block(x, None if self.causal else keys, self.causal, real)
        return self._finish(self.blocks[-1].at(x, lengths - 1, keys)).squeeze(1)  # type: ignore[operator]

    def prefill(self, x: Tensor, lengths: Tensor) -> Cache:
        """Keys and values of every position, for `advance`, which overwrites those of the last real one."""
        if not self.causal:
            raise ValueError("only a causal encoder can reuse keys and values")
        cache: Cache = []
        for block in self.blocks[:-1]:
            x, (k, v) = block(x, None, True)
            cache.append((k.contiguous(), v.contiguous()))
        k, v = self.blocks[-1].keys_and_values(self.blocks[-1].norm_attention(x))  # type: ignore[operator]
        return [*cache, (k.contiguous(), v.contiguous())]

    def advance(self, last: Tensor, lengths: Tensor, cache: Cache) -> Tensor:
        """The output (B, d) at a new last token (B, d), with the cache of `prefill`."""
        x = last[:, None]
        mask = _real(cache[0][0].transpose(1, 2), lengths)[:, None, None, :]
        for block, kv in zip(self.blocks, cache, strict=True):
            x = block.advance(x, lengths - 1, kv, mask)  # type: ignore[operator]
        return self._finish(x).squeeze(1)


def _real(x: Tensor, lengths: Tensor) -> Tensor:
    """(B, L) bool, True at real tokens."""
    return torch.arange(x.shape[1], device=x.device) < lengths[:, None]


def _pick(x: Tensor, position: Tensor) -> Tensor:
    """(B, 1, d) the tokens at one position (B,) of each row."""
    return x[torch.arange(x.shape[0], device=x.device), position][:, None]
