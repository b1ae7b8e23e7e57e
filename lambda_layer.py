"""The lambda layer of Bello (2021), with a global context.

b batch · n query positions · m context positions (here the same) · d channels · k key depth · v value depth
· u intra-depth · h heads
"""

import torch
from torch import Tensor, nn


class LambdaLayer(nn.Module):
    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        *,
        input_size: int | tuple[int, int] | None = None,
        key_depth: int = 16,
        heads: int = 4,
        intra_depth: int = 1,
        scope: int | None = None,
        position: str = "relative",
        content: bool = True,
        embedding: nn.Parameter | None = None,
    ) -> None:
        super().__init__()
        dim_out = dim if dim_out is None else dim_out
        if dim_out % heads:
            raise ValueError(f"heads: {heads} does not divide the {dim_out} output channels")
        if scope is not None:
            raise NotImplementedError
        self.key_depth, self.heads, self.intra_depth = key_depth, heads, intra_depth
        self.value_depth = dim_out // heads
        self.position = position
        self.to_queries = nn.Linear(dim, heads * key_depth, bias=False)
        self.to_keys = nn.Linear(dim, key_depth * intra_depth, bias=False)
        self.to_values = nn.Linear(dim, self.value_depth * intra_depth, bias=False)
        self.norm_queries = nn.BatchNorm1d(heads * key_depth)
        self.norm_values = nn.BatchNorm1d(self.value_depth * intra_depth)
        if embedding is None:
            embedding = self.make_embedding(
                input_size=input_size, key_depth=key_depth, intra_depth=intra_depth, position=position
            )
        self.embedding = embedding
        nn.init.normal_(self.to_queries.weight, std=(dim * key_depth) ** -0.5)
        nn.init.normal_(self.to_keys.weight, std=dim**-0.5)
        nn.init.normal_(self.to_values.weight, std=dim**-0.5)

    @staticmethod
    def make_embedding(*, input_size, key_depth=16, intra_depth=1, scope=None, position="relative"):
        if position == "none":
            return None
        height, width = (input_size, input_size) if isinstance(input_size, int) else input_size
        if position == "absolute":
            n = height * width
            return nn.Parameter(torch.randn(n, n, key_depth, intra_depth))
        return nn.Parameter(torch.randn(key_depth, intra_depth, 2 * height - 1, 2 * width - 1))

    def _offsets(self, height: int, width: int) -> Tensor:
        if self.position == "absolute":
            return self.embedding
        _, _, rows, columns = self.embedding.shape
        device = self.embedding.device
        y = torch.arange(height, device=device)
        x = torch.arange(width, device=device)
        dy = y[None, :] - y[:, None] + rows // 2
        dx = x[None, :] - x[:, None] + columns // 2
        e = self.embedding[:, :, dy[:, None, :, None], dx[None, :, None, :]]
        return e.reshape(*e.shape[:2], height * width, height * width).permute(2, 3, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, d, height, width = x.shape
        k, u, h, v = self.key_depth, self.intra_depth, self.heads, self.value_depth
        n = height * width
        flat = x.permute(0, 2, 3, 1).reshape(b * n, d)
        queries = self.norm_queries(self.to_queries(flat)).view(b, n, h, k)
        keys = self.to_keys(flat).view(b, n, k, u).softmax(1)
        values = self.norm_values(self.to_values(flat)).view(b, n, v, u)
        content = torch.einsum("bmku,bmvu->bkv", keys, values)
        lambdas = content[:, None]
        if self.position != "none":
            lambdas = lambdas + torch.einsum("nmku,bmvu->bnkv", self._offsets(height, width), values)
        y = torch.einsum("bnhk,bnkv->bnhv", queries, lambdas.expand(b, n, k, v))
        return y.reshape(b, height, width, h * v).permute(0, 3, 1, 2)
