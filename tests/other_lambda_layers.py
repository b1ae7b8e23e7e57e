"""Lambda layers as two repositories that are on no package index define them, written anew from the names of their
parts and the order of their channels.

b batch · k key depth · v value depth · h heads · u intra-depth · m or r side of the local context · n positions
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DLi14Layer(nn.Module):
    """d-li14's: one projection to all three, keys (u, k) and values (u, v), a 3×3 pool for a stride of 2."""

    def __init__(self, dim: int, k: int, h: int, u: int, r: int, stride: int = 1, bias: bool = False) -> None:
        super().__init__()
        self.k, self.h, self.u, self.v = k, h, u, dim // h
        self.conv_qkv = nn.Conv2d(dim, h * k + u * k + u * self.v, 1, bias=bias)
        self.norm_q = nn.BatchNorm2d(h * k)
        self.norm_v = nn.BatchNorm2d(u * self.v)
        self.pos_conv = nn.Conv3d(u, k, (1, r, r), padding=(0, r // 2, r // 2))
        self.pool = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        b, _, height, width = x.shape
        query, key, value = self.conv_qkv(x).split([self.h * self.k, self.u * self.k, self.u * self.v], dim=1)
        query = self.norm_q(query).view(b, self.h, self.k, -1)
        key = key.reshape(b, self.u, self.k, -1).softmax(3)
        value = self.norm_v(value).view(b, self.u, self.v, -1)
        content = torch.einsum("bukm,buvm->bkv", key, value)
        position = self.pos_conv(value.unflatten(3, (height, width))).flatten(3)
        y = torch.einsum("bhkn,bkv->bhvn", query, content) + torch.einsum("bhkn,bkvn->bhvn", query, position)
        return self.pool(y.reshape(b, -1, height, width))


class Leaderj1001Layer(nn.Module):
    """leaderj1001's: keys (k, u) and values (v, u) for the content, values (u, v) for a local position (m > 0)."""

    def __init__(self, dim: int, dim_out: int, k: int, h: int, u: int, m: int) -> None:
        super().__init__()
        self.k, self.h, self.u, self.v, self.m = k, h, u, dim_out // h, m
        self.queries = nn.Sequential(nn.Conv2d(dim, k * h, 1, bias=False), nn.BatchNorm2d(k * h))
        self.keys = nn.Sequential(nn.Conv2d(dim, k * u, 1, bias=False))
        self.values = nn.Sequential(nn.Conv2d(dim, self.v * u, 1, bias=False), nn.BatchNorm2d(self.v * u))
        self.softmax = nn.Softmax(dim=-1)
        self.embedding = nn.Parameter(torch.randn((k, u, 1, m, m) if m else (k, u)))

    def forward(self, x: Tensor) -> Tensor:
        b, _, *size = x.shape
        query = self.queries(x).view(b, self.h, self.k, -1)
        key = self.softmax(self.keys(x).view(b, self.k, self.u, -1))
        value = self.values(x).view(b, self.v, self.u, -1)
        content = torch.einsum("bkum,bvum->bkv", key, value)
        if self.m:
            padding = (0, self.m // 2, self.m // 2)
            position = F.conv3d(value.reshape(b, self.u, self.v, *size), self.embedding, padding=padding).flatten(3)
        else:
            position = torch.einsum("ku,bvun->bkvn", self.embedding, value)
        y = torch.einsum("bhkn,bkv->bhvn", query, content) + torch.einsum("bhkn,bkvn->bhvn", query, position)
        return y.reshape(b, -1, *size)
