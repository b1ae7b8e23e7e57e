"""The study's λ-ResNet, faults and all: number by number what its code computes (`test_study_network.py`).

Where its layer departs from the paper's (`lambda_layer.py`):

    reshape      the map (b, d, H, W) is reshaped, not permuted, to (b, n, d) before the projections: "position" i is
                 the i-th run of d numbers of the image, and the projections run over pixels; the output is laid out
                 rightly
    query norm   one batch norm over the k numbers of a query, across the heads; for each head and channel there
    value norm   one batch norm over the m positions, across the channels; over the channels there
    embedding    absolute, and one for all the layers of one map size, across the borders of the stages

b batch · n query positions · m context positions (all n of them) · d channels · k key depth · v value depth · h heads
"""

from collections.abc import Mapping

from torch import Tensor, nn
from torchvision.models.resnet import ResNet

from lambda_layer import LambdaLayer, absolute_output, content_output
from lambda_ops.modules import is_plain
from resnet import BASIC, POOLED, build_resnet, halve, stage_sizes

Size = tuple[int, int]  # height and width of a map
MOMENTUM = 0.9999  # of the batch norms outside the lambda layers: running statistics are those of the last batch
STUDYS_NAMES = {"downsample_residual": "downsample"}  # where torchvision names a part of a bottleneck otherwise


class StudyLambdaLayer(nn.Module):
    """The lambda layer as the study has it: (b, dim, *size) -> (b, dim, *size), channels last in memory.

    The parameters have the study's names.

    Args:
        dim: d, input and output channels.
        size: height and width of the one map size that the absolute embedding serves.
        embedding: E (n, m, k), where several layers share one.
        stride: with 2, a 3×3 average pool (zeros counted) that halves the map follows.

    Raises:
        ValueError: heads do not divide dim; in the forward pass, an input of another shape.
    """

    def __init__(
        self,
        dim: int,
        size: Size,
        embedding: nn.Parameter | None = None,
        *,
        key_depth: int = 16,
        heads: int = 4,
        stride: int = 1,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads ({heads}) must divide dim ({dim})")
        self.dim, self.size, self.key_depth, self.heads = dim, size, key_depth, heads
        positions = size[0] * size[1]
        self.toqueries = nn.Linear(dim, key_depth * heads, bias=False)
        self.tokeys = nn.Linear(dim, key_depth, bias=False)
        self.tovalues = nn.Linear(dim, dim // heads, bias=False)
        self.bn_queries = nn.BatchNorm1d(key_depth)
        self.bn_values = nn.BatchNorm1d(positions)
        self.E = make_embedding(size, key_depth) if embedding is None else embedding
        self.pool = nn.AvgPool2d(kernel_size=3, stride=2, padding=1) if stride == 2 else nn.Identity()
        nn.init.normal_(self.toqueries.weight, std=(dim * key_depth) ** -0.5)
        nn.init.normal_(self.tokeys.weight, std=dim**-0.5)
        nn.init.normal_(self.tovalues.weight, std=dim**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1:] != (self.dim, *self.size):
            raise ValueError(f"input has shape {tuple(x.shape)}; it must be (batch, {self.dim}, *{self.size})")
        x = x.reshape(len(x), -1, self.dim)  # the study's fault: (b, n, d), but not a position in a row
        query, key, value = self._query(x), self.tokeys(x), self.bn_values(self.tovalues(x))
        y = content_output(query, key.unsqueeze(3), value.unsqueeze(2))
        y = y + absolute_output(query, value.unsqueeze(2), self.E.unsqueeze(3), self.size)  # (b, n, h, v)
        return self.pool(y.flatten(2).unflatten(1, self.size).movedim(3, 1))

    def _query(self, x: Tensor) -> Tensor:
        """(b, n, d) -> (b, n, h, k), normalised.

        The study's projection gives (k, h). Here its weights' rows are put into the other order, not all the queries,
        unless a call of it does more than a product with them.
        The batch norm gets rows of k: over (b, k, n, h), as the study has it, PyTorch's gradient is wrong on the CPU
        for some strides.
        """
        k_h = self.key_depth, self.heads
        if is_plain(self.toqueries, nn.Linear) and self.toqueries.bias is None:
            weight = self.toqueries.weight.unflatten(0, k_h).transpose(0, 1).flatten(0, 1)
            query = nn.functional.linear(x, weight)  # (b, n, h·k)
        else:
            query = self.toqueries(x).unflatten(2, k_h).transpose(2, 3)  # (b, n, h, k)
        query = self.bn_queries(query.reshape(-1, self.key_depth))  # (b·n·h, k)
        return query.view(*x.shape[:2], self.heads, self.key_depth)


def make_embedding(size: Size, key_depth: int) -> nn.Parameter:
    """E (n, m, k) ~ N(0, 1)."""
    return nn.Parameter(
        LambdaLayer.make_embedding(input_size=size, key_depth=key_depth, position="absolute").data.squeeze(3)
    )


def build_study_lambda_resnet(
    depth: int = 50,
    *,
    image_size: int = 32,
    num_classes: int = 10,
    stem: str = "imagenet",
    layer: type[StudyLambdaLayer] = StudyLambdaLayer,
) -> ResNet:
    """The study's λ-ResNet: (b, 3, image_size, image_size) images -> (b, num_classes) logits.

    Args:
        depth, num_classes, stem: as for `resnet.build_resnet`; the study's blocks are bottlenecks.
        layer: another class that computes the same.

    Raises:
        ValueError: the depth has basic or pooled blocks, or `build_resnet` refuses a setting.
    """
    if depth in (*BASIC, *POOLED):
        kind = "basic" if depth in BASIC else "pooled"
        raise ValueError(f"depth: {depth} has {kind} blocks; the study's network takes one with bottlenecks")
    network = build_resnet(depth, num_classes=num_classes, stem=stem)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = MOMENTUM
    embeddings: dict[Size, nn.Parameter] = {}
    size = stage_sizes((image_size, image_size), stem)[0]
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        for bottleneck in stage:
            stride = bottleneck.conv2.stride[0]
            bottleneck.conv2 = layer(bottleneck.conv2.in_channels, size, embeddings.get(size), stride=stride)
            embeddings[size] = bottleneck.conv2.E
            size = halve(size) if stride == 2 else size
    return network


def load_study_state_dict(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a state dict with the study's own keys into the network of `build_study_lambda_resnet`, strictly."""
    renamed = {".".join(STUDYS_NAMES.get(part, part) for part in key.split(".")): state[key] for key in state}
    network.load_state_dict(renamed)
