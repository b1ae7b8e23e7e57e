"""Self-attention over a map, by PyTorch's own kernels.

b batch · n query positions · m context positions (all n of them) · d channels · h heads
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SelfAttention2d(nn.Module):
    """Multi-head self-attention over a map with a relative position bias: (b, d, H, W) -> (b, d, H, W)."""

    def __init__(self, dim: int, size: tuple[int, int], heads: int = 4) -> None:
        super().__init__()
        self.offset: Tensor  # (n, m)
        self.heads, (height, width) = heads, size
        self.to_queries_keys_values = nn.Linear(dim, 3 * dim, bias=False)
        self.bias = nn.Parameter(torch.zeros(heads, (2 * height - 1) * (2 * width - 1)))
        rows, columns = torch.arange(height * width) // width, torch.arange(height * width) % width
        offset = (rows - rows[:, None] + height - 1) * (2 * width - 1) + columns - columns[:, None] + width - 1
        self.register_buffer("offset", offset, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        b, d, height, width = x.shape
        tokens = x.flatten(2).transpose(1, 2)  # (b, n, d)
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (b, h, n, d / h)
            for part in self.to_queries_keys_values(tokens).chunk(3, dim=2)
        )
        y = F.scaled_dot_product_attention(query, key, value, self.bias[:, self.offset])
        return y.transpose(1, 2).reshape(b, height, width, d).permute(0, 3, 1, 2)
