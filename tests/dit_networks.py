"""DiT written down from its formulas, under the names of the published state dicts, for comparison
and for tiny checkpoints.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def frequencies(t: Tensor, width: int = 256) -> Tensor:
    """[B] -> [B, width]: cosines, then sines, of t exp(-ln(10000) i / (width / 2))."""
    half = width // 2
    angles = t.float()[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
    return torch.cat([angles.cos(), angles.sin()], 1)


def positions(side: int, width: int) -> Tensor:
    """[1, side * side, width]: a quarter each for sine and cosine of the column, sine and cosine of
    the row.
    """
    rates = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    parts = [f(place.reshape(-1, 1) * rates) for place in (columns, rows) for f in (torch.sin, torch.cos)]
    return torch.cat(parts, 1).float()[None]


def norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return norm(x) * (1 + scale[:, None]) + shift[:, None]


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv, self.proj, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def forward(self, x: Tensor) -> Tensor:
        b, n, width = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / math.sqrt(width // self.heads)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, width))


class Block(nn.Module):
    """x + gate * f(modulated norm of x), for attention and then for the two-layer network
    (adaLN-Zero).
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, 1)
        x = x + gate1[:, None] * self.attn(modulate(x, shift1, scale1))
        hidden = F.gelu(self.mlp["fc1"](modulate(x, shift2, scale2)), approximate="tanh")
        return x + gate2[:, None] * self.mlp["fc2"](hidden)


class OriginalDiT(nn.Module):
    """DiT with random weights of which none is zero; `rows` of the label table, the null label
    included.
    """

    def __init__(self, side: int = 4, patch: int = 2, width: int = 24, depth: int = 2, heads: int = 3, rows: int = 6) -> None:
        super().__init__()
        self.patch = patch
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv2d(4, width, patch, patch)})
        self.pos_embed = nn.Parameter(positions(side // patch, width), requires_grad=False)
        self.t_embedder = nn.ModuleDict({"mlp": nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))})
        self.y_embedder = nn.ModuleDict({"embedding_table": nn.Embedding(rows, width)})
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        last = {"linear": nn.Linear(width, patch**2 * 8), "adaLN_modulation": nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))}
        self.final_layer = nn.ModuleDict(last)
        generator = torch.Generator().manual_seed(0)
        for name, parameter in self.named_parameters():
            if name != "pos_embed":
                fan = parameter[0].numel() if parameter.ndim > 1 else 1
                parameter.data = torch.randn(parameter.shape, generator=generator) / math.sqrt(fan)
        self.requires_grad_(False)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """x [B, 4, S, S] -> [B, 8, S, S]: noise, then variance."""
        tokens = self.x_embedder["proj"](x).flatten(2).transpose(1, 2) + self.pos_embed
        c = self.t_embedder["mlp"](frequencies(t)) + self.y_embedder["embedding_table"](y)
        for block in self.blocks:
            tokens = block(tokens, c)
        shift, scale = self.final_layer["adaLN_modulation"](c).chunk(2, 1)
        out = self.final_layer["linear"](modulate(tokens, shift, scale))
        side, p = x.shape[-1] // self.patch, self.patch
        return out.reshape(len(x), side, side, p, p, 8).permute(0, 5, 1, 3, 2, 4).reshape(len(x), 8, side * p, side * p)
