"""The lambda layer as loops over its formula: nothing here is shared with lambda_layer.py, nothing is fast.

Sizes: b batch, n query positions, m context positions, d channels, k key depth, v value depth, h heads,
u intra-depth.
"""

import itertools

import torch
from torch import Tensor


def batch_norm(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    """Training-mode batch norm of (b, n, channels), over b and n."""
    mean = x.mean((0, 1))
    variance = (x - mean).square().mean((0, 1))
    return (x - mean) / (variance + eps).sqrt() * gamma + beta


def embedding_of_pair(table: Tensor, position: str, size, n: int, m: int) -> Tensor | None:
    """E[n, m] of shape (k, u), None outside the scope."""
    if position == "absolute":
        return table[n, m]
    positions = list(itertools.product(*(range(length) for length in size)))
    index = [to - at + side // 2 for at, to, side in zip(positions[n], positions[m], table.shape[2:], strict=True)]
    if any(not 0 <= i < side for i, side in zip(index, table.shape[2:], strict=True)):
        return None
    return table[(slice(None), slice(None), *index)]


def lambda_layer(layer: torch.nn.Module, x: Tensor) -> Tensor:
    """What `layer` in training mode computes for x (b, d, *size), from its parameters."""
    b, d, *size = x.shape
    h, k, v, u = layer.heads, layer.key_depth, layer.value_depth, layer.intra_depth
    x = x.reshape(b, d, -1).permute(0, 2, 1)
    count = x.shape[1]

    norm = layer.norm_queries
    query = batch_norm(x @ layer.to_queries.weight.T, norm.weight, norm.bias, norm.eps).reshape(b, count, h, k)
    norm = layer.norm_values
    value = batch_norm(x @ layer.to_values.weight.T, norm.weight, norm.bias, norm.eps).reshape(b, count, v, u)

    content_lambda = torch.zeros(b, k, v, dtype=x.dtype)
    if layer.content:
        key = (x @ layer.to_keys.weight.T).reshape(b, count, k, u)
        key = key.exp() / key.exp().sum(1, keepdim=True)
        for m in range(count):
            for intra in range(u):
                content_lambda = content_lambda + key[:, m, :, None, intra] * value[:, m, None, :, intra]

    rows = []
    for n in range(count):
        position_lambda = torch.zeros(b, k, v, dtype=x.dtype)
        for m in range(count) if layer.position != "none" else ():
            embedding = embedding_of_pair(layer.embedding, layer.position, size, n, m)
            if embedding is not None:
                for intra in range(u):
                    position_lambda = position_lambda + embedding[:, None, intra] * value[:, m, None, :, intra]
        if layer.position_bias is not None:
            position_lambda = position_lambda + layer.position_bias[:, None]
        heads = [(query[:, n, head, :, None] * (content_lambda + position_lambda)).sum(1) for head in range(h)]
        rows.append(torch.cat(heads, dim=1))  # (b, h·v)
    return torch.stack(rows, dim=2).reshape(b, h * v, *size)
