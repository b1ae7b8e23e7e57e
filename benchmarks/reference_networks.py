"""The benchmark's reference rows: what the study trained and what a plain user of torchvision trains.

`StudyLambdaLayer` is a plain transcription of the layer that the study describes, with what was wrong in it: the map is
reshaped (not permuted) to positions, and the values are normalised over positions (not over channels). It is here to
be timed against, and trained only to measure what its faults cost; `lambda_layer.py` has the layer of the paper.

b batch · n query positions · m context positions (all n of them) · d channels · k key depth · v value depth
· u intra-depth · h heads
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import ResNet

from resnet import build_resnet, halve, stage_sizes

Size = tuple[int, int]  # height and width of a map


class StudyLambdaLayer(nn.Module):
    """The lambda layer as the study has it: (b, dim, height, width) -> (b, dim_out, height, width).

    Args:
        positions: n, the positions of the one map size that an absolute embedding serves.
        embedding: E (n, m, k, u), where a stage shares one.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        positions: int,
        embedding: nn.Parameter | None = None,
        *,
        key_depth: int = 16,
        heads: int = 4,
        intra_depth: int = 1,
    ) -> None:
        super().__init__()
        self.key_depth, self.heads, self.intra_depth, self.value_depth = key_depth, heads, intra_depth, dim_out // heads
        self.to_queries = nn.Conv2d(dim, key_depth * heads, kernel_size=1, bias=False)
        self.to_keys = nn.Conv2d(dim, key_depth * intra_depth, kernel_size=1, bias=False)
        self.to_values = nn.Conv2d(dim, self.value_depth * intra_depth, kernel_size=1, bias=False)
        self.norm_queries = nn.BatchNorm2d(key_depth * heads)
        self.norm_values = nn.BatchNorm1d(positions)
        if embedding is None:
            embedding = nn.Parameter(torch.randn(positions, positions, key_depth, intra_depth))
        self.embedding = embedding
        nn.init.normal_(self.to_queries.weight, std=(dim * key_depth) ** -0.5)
        nn.init.normal_(self.to_keys.weight, std=dim**-0.5)
        nn.init.normal_(self.to_values.weight, std=dim**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        b, _, height, width = x.shape
        n = height * width
        k, h, u, v = self.key_depth, self.heads, self.intra_depth, self.value_depth
        queries = self.norm_queries(self.to_queries(x)).reshape(b, n, h, k)  # mixes channels and positions, as it did
        keys = F.softmax(self.to_keys(x).reshape(b, n, k, u), dim=1)
        values = self.norm_values(self.to_values(x).reshape(b, n, v * u)).reshape(b, n, v, u)
        content = torch.einsum("bmku,bmvu->bkv", keys, values)
        position = torch.einsum("nmku,bmvu->bnkv", self.embedding, values)
        outputs = torch.einsum("bnkv,bnhk->bnhv", content[:, None] + position, queries)
        return outputs.reshape(b, h * v, height, width)


def build_study_lambda_resnet(
    depth: int = 50, *, image_size: int = 32, num_classes: int = 10, stem: str = "imagenet"
) -> ResNet:
    """The study's λ-ResNet: (b, 3, image_size, image_size) -> (b, num_classes); a stage's maps of one size share E."""
    embeddings: dict[tuple[int, Size], nn.Parameter] = {}

    def make_layer(dim: int, size: Size) -> StudyLambdaLayer:
        layer = StudyLambdaLayer(dim, dim, size[0] * size[1], embeddings.get((dim, size)))
        embeddings[dim, size] = layer.embedding
        return layer

    model = build_resnet(depth, num_classes=num_classes, stem=stem)
    return replace_convolutions(model, make_layer, image_size=image_size, stem=stem)


def replace_convolutions(
    model: ResNet, make_layer: Callable[[int, Size], nn.Module], *, image_size: int, stem: str
) -> ResNet:
    """Put `make_layer(d, size)` where each bottleneck has its 3×3 convolution, changing the network in place.

    A layer maps (b, d, *size) to the same; a 3×3 average pool follows where the convolution had a stride of 2.
    """
    stages = (model.layer1, model.layer2, model.layer3, model.layer4)
    for stage, size in zip(stages, stage_sizes((image_size, image_size), stem), strict=True):
        for bottleneck in stage:
            strided = bottleneck.conv2.stride != (1, 1)
            layer = make_layer(bottleneck.conv2.in_channels, size)
            bottleneck.conv2 = layer
            if strided:
                bottleneck.conv2 = nn.Sequential(layer, nn.AvgPool2d(kernel_size=3, stride=2, padding=1))
                size = halve(size)
    return model


def build_plain_resnet(depth: int = 50, *, num_classes: int = 10, stem: str = "imagenet") -> ResNet:
    """torchvision's ResNet as it is: (b, 3, height, width) -> (b, num_classes); contiguous, no fast layers."""
    return build_resnet(depth, num_classes=num_classes, stem=stem)
