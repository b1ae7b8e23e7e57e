"""Networks as they are commonly written: what the study trained, and what a plain user of torchvision trains.

b batch · n query positions · m context positions (all n of them) · d channels · k key depth · v value depth · h heads
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models.resnet import ResNet

from reference_networks.study import Size, StudyLambdaLayer, build_study_lambda_resnet
from resnet import build_resnet, halve, stage_sizes


class PlainStudyLambdaLayer(StudyLambdaLayer):
    """The study's layer as it is commonly written, with every lambda (b, n, k, v) in memory."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(len(x), -1, self.dim)
        query = self.toqueries(x).view(-1, self.key_depth, self.heads)
        query = self.bn_queries(query).view(*x.shape[:2], self.key_depth, self.heads)
        key, value = self.tokeys(x).softmax(dim=1), self.bn_values(self.tovalues(x))
        content_lambda = torch.einsum("bmk,bmv->bkv", key, value)
        position_lambda = torch.einsum("nmk,bmv->bnkv", self.E, value)
        y = torch.einsum("bnkh,bnkv->bhvn", query, content_lambda.unsqueeze(1) + position_lambda)
        return self.pool(y.reshape(len(x), self.dim, *self.size))


def build_plain_study_network(*, image_size: int, num_classes: int, stem: str) -> ResNet:
    """The study's λ-ResNet-50 as it is commonly written: contiguous, no fast layers."""
    return build_study_lambda_resnet(
        image_size=image_size, num_classes=num_classes, stem=stem, layer=PlainStudyLambdaLayer
    )


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
