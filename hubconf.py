"""What `torch.hub` finds in this repository: λ-ResNets, the baseline and the layer. No weights come with them.

torch.hub.load("<path of a checkout>", "resnet50_lambda", source="local", num_classes=10, image_size=32)
torch.hub.load("<path of a checkout>", "lambda_layer", source="local", dim=64, scope=7)

Without a checkout, the repository stands in the path's place, as in the README, and `source` is left out. The arguments
are shown by `torch.hub.help("<owner>/<name>", "resnet50_lambda")`, or in a checkout by `help(hubconf.resnet50_lambda)`.
"""

from lambda_layer import LambdaLayer as lambda_layer  # noqa: F401 - all these are for torch.hub
from lambda_layer import LambdaLayer1d as lambda_layer_1d  # noqa: F401
from lambda_layer import LambdaLayer3d as lambda_layer_3d  # noqa: F401
from resnet import build_resnet as resnet  # noqa: F401
from resnet_lambda import (  # noqa: F401
    resnet10_lambda,
    resnet18_lambda,
    resnet26_lambda,
    resnet34_lambda,
    resnet50_lambda,
    resnet101_lambda,
    resnet152_lambda,
    resnet200_lambda,
    resnet270_lambda,
    resnet350_lambda,
    resnet420_lambda,
    resnext50_32x4d_lambda,
    resnext101_32x8d_lambda,
    resnext101_64x4d_lambda,
    wide_resnet50_2_lambda,
    wide_resnet101_2_lambda,
)

dependencies = ["torch", "torchvision"]  # torch.hub looks for them before it loads anything
