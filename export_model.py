"""Export a trained network, for use without this project: to ONNX, or to PyTorch's own format.

    python export_model.py --checkpoint latest --to model.onnx    # needs: pip install onnx onnxscript
    python export_model.py --checkpoint latest --to model.pt2     # torch.export.load("model.pt2").module()

A few seconds for λ-ResNet-26, about a minute for λ-ResNet-50 on two CPU cores. The exported network takes `images`, RGB
pixels in 0..1 as float32 (b, 3, side, side), any number of them and of the run's size; it normalises them itself and
gives `logits` (b, classes). Batch norms of basic blocks and bottlenecks are folded into the convolutions. What it takes
and gives, and the names of the classes, go with it, as metadata (`classes`, in JSON, `inputs`, `outputs`, `network`) or
as `about.json`.

Weights alone (`.pth`) are of use with this project's code only, and lie in the checkpoint already:
`resnet50_lambda(weights=torch.load(checkpoint, weights_only=True)["training"]["model"], ...)`.
"""

import command_line.interrupts  # noqa: F401, I001 - first, since what follows takes seconds

from command_line.errors import one_line_errors
from command_line.tools import read_export

if __name__ == "__main__":  # here, so that --help and what is refused need not wait for PyTorch
    with one_line_errors():
        read_export(__doc__)

import io
import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from acceleration.fast_layers import folded
from command_line.errors import InputError
from command_line.paths import shown
from lambda_layer import LambdaLayer
from lambda_ops.rule import Way, choose_way
from run_state.trained_network import Classifier, TrainedNetwork, load_network

EXAMPLES = 2  # images that are traced; one would fix the batch
VIEWS = {  # how a test image becomes so large, by `UserInput.crops`
    "crop": "the shorter side resized to it, the centre taken",
    "resized_crop": "the shorter side resized to 256/224 of it, the centre taken",
}


def main(argv: list[str] | None = None) -> None:
    """Export what the command line names."""
    arguments = read_export(__doc__, argv)
    save = {".onnx": save_onnx, ".pt2": save_pt2}[arguments.to.suffix]
    network = load_network(arguments.checkpoint)
    about = describe(network)
    print(f"exporting {network.title}: seconds, or about a minute for many layers", flush=True)
    try:
        save(export(network), about, arguments.to)
    except OSError as error:
        raise InputError(f"to: {arguments.to} cannot be written ({error.strerror})") from error
    print(f"{shown(arguments.to)}\n  takes {about['inputs']}\n  gives {about['outputs']}")


def describe(network: TrainedNetwork) -> dict[str, str]:
    """What goes with the exported network, in words; the classes in JSON."""
    side = network.args.image_size
    return {
        "network": network.title,
        "inputs": f"images (b, 3, {side}, {side}) float32: RGB in 0..1, not normalised; {VIEWS[network.args.crops]}",
        "outputs": f"logits (b, {len(network.classes)}) float32, in the order of the classes; softmax gives shares",
        "classes": json.dumps(network.classes),
    }


def export(network: TrainedNetwork) -> ExportedProgram:
    """The network as a graph, for batches of any size, its batch norms folded into the convolutions before them."""
    images = torch.rand(EXAMPLES, 3, network.args.image_size, network.args.image_size)
    network = replace(network, model=folded(network.model))
    with torch.no_grad():
        avoid_fft(network.model, images)
        classifier, any_batch = Classifier(network).eval(), ({0: Dim("batch")},)
        # strict, which is PyTorch 2.6's default, refuses lambda layers
        return torch.export.export(classifier, (images,), dynamic_shapes=any_batch, strict=False)


def avoid_fft(model: nn.Module, images: Tensor) -> None:
    """Let the layers whose cheapest way is an FFT take the convolution: PyTorch cannot write the FFT in ONNX."""

    def choose(layer: nn.Module, inputs: tuple[Tensor]) -> None:
        if not isinstance(layer, LambdaLayer) or layer.embedding is None or layer.position != "relative":
            return
        size = tuple(inputs[0].shape[2:])
        sides = zip(layer.embedding.shape[2:], size, strict=True)
        scope = tuple(min(side, 2 * length - 1) for side, length in sides)  # of the table's middle
        depths = layer.heads, layer.key_depth, layer.value_depth, layer.intra_depth
        if choose_way(size, scope, *depths, backward=False).name == "fft":
            layer._way = Way("convolution")

    hooks = [layer.register_forward_pre_hook(choose) for layer in model.modules() if isinstance(layer, LambdaLayer)]
    model(images[:1])
    for hook in hooks:
        hook.remove()


def save_pt2(program: ExportedProgram, about: dict[str, str], path: Path) -> None:
    content = about | {"classes": json.loads(about["classes"])}
    written = io.BytesIO()  # a file of its own would fail with another error than OSError
    torch.export.save(program, written, extra_files={"about.json": json.dumps(content)})
    path.write_bytes(written.getbuffer())


def save_onnx(program: ExportedProgram, about: dict[str, str], path: Path) -> None:
    onnx = torch.onnx.export(
        program, dynamo=True, input_names=["images"], output_names=["logits"], verbose=False, optimize=True
    )
    onnx.model.metadata_props.update(about)
    onnx.model.doc_string = f"{about['inputs']} -> {about['outputs']}"
    onnx.save(path)


if __name__ == "__main__":
    with one_line_errors():
        main()
