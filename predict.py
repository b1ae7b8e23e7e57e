"""Say what a trained network sees in images of your own.

    python predict.py cat.jpg holiday/*.png --checkpoint runs/Lambda/<run>

    image                 class                confidence
    cat.jpg               cat                     93.10 %
                          dog                      4.25 %

Images of any size and format that Pillow reads, of which the network sees what it saw of a test image: resized to its
size by the shorter side, the centre. Photographs are turned as their EXIF data say, animations give their first
picture, transparent parts are white, 16 bits become 8. A confidence is the share that the softmax gives to a class; it
is not the chance of being right, and an image of no class that the network knows gets one too.
"""

import argparse
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from command_line.errors import InputError, Parser, one_line_errors
from data_sources.images import IMAGE_FORMATS
from run_state.trained_network import TrainedNetwork, load_network


def main(argv: list[str] | None = None) -> None:
    """Print a table of the images that the command line names."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", type=Path, help="image files")
    parser.add_argument("--checkpoint", type=Path, required=True, help="a checkpoint, or a run's folder")
    parser.add_argument("--top", type=int, default=3, help="how many classes to name for each image (default: 3)")
    arguments = parser.parse_args(argv)
    if arguments.top < 1:
        raise InputError(f"top: {arguments.top} is not allowed; takes a whole number, at least 1")
    network = load_network(arguments.checkpoint)
    widths = [max(map(len, names)) for names in (["image", *map(str, arguments.images)], ["class", *network.classes])]
    row = f"{{:{widths[0]}}}  {{:{widths[1]}}}  {{:>10}}".format
    print(row("image", "class", "confidence"))
    for path in arguments.images:
        name = str(path)
        for label, confidence in predict(network, read_image(path), arguments.top):
            print(row(name, label, f"{100 * confidence:.2f} %"))
            name = ""


def predict(network: TrainedNetwork, image: Image.Image, top: int = 3) -> list[tuple[str, float]]:
    """The likeliest classes of an RGB image of any size, each with the share in 0..1 that the softmax gives it."""
    pixels = torch.from_numpy(np.array(network.view(image)))  # (s, s, 3) uint8
    with torch.inference_mode():
        logits = network.model(network.normalisation.apply(pixels[None]))[0]  # (classes,)
    shares, indices = logits.softmax(0).topk(min(top, len(network.classes)))
    return [(network.classes[i], share) for i, share in zip(indices.tolist(), shares.tolist(), strict=True)]


def read_image(path: Path) -> Image.Image:
    """An image file as people see it, in RGB with 8 bits.

    Raises:
        InputError: there is no such file, or it is no image, a damaged one, or one with more pixels than Pillow trusts.
    """
    if path.is_dir():
        raise InputError(f"images: {path} is a folder; takes image files, such as {path}/*.jpg")
    if not path.is_file():
        raise InputError(f"images: there is no file {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=IMAGE_FORMATS) as image:
                return _as_rgb(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise InputError(
            f"images: {path} has more pixels than the {Image.MAX_IMAGE_PIXELS:,} that are taken from a file"
        ) from error
    except Exception as error:  # a damaged file fails in whichever way its bytes happen to
        raise InputError(f"images: {path} is no image that can be read ({error})") from error


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # more than 8 bits of grey, which `convert` would cut off at 255
        values = np.nan_to_num(np.asarray(image, np.float64)).clip(0.0)
        whites = (65535.0,) if image.mode.startswith("I;16") else (1.0, 255.0, 65535.0, values.max())
        white = next(white for white in whites if values.max() <= white)
        image = Image.fromarray((values * (255.0 / white)).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


if __name__ == "__main__":
    with one_line_errors():
        main()
