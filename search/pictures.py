"""Images and feature maps as pictures, in files or in a page itself."""

import base64
import io
from collections.abc import Sequence

import numpy
import torch
from PIL import Image
from plotly.colors import sequential, unlabel_rgb, validate_colors
from torch import Tensor
from torch.nn.functional import pad
from torchvision.utils import make_grid

TILE = 64  # pixels, the side of a feature map in a picture
COLUMNS = 8
GAP = 4  # pixels


def png(image: Tensor) -> bytes:
    """A uint8 image of shape (3, H, W) as the content of a file."""
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).save(file, "PNG", optimize=True)
    return file.getvalue()


def picture(image: Tensor) -> str:
    """A uint8 image of shape (3, H, W) as the URI of a PNG."""
    return f"data:image/png;base64,{base64.b64encode(png(image)).decode()}"


def row_of(images: Sequence[Tensor]) -> Tensor:
    """uint8 images of one size side by side, a little apart."""
    return _grid(torch.stack(list(images)), len(images), 1)


def rows_of(images: Tensor) -> Tensor:
    """uint8 images of shape (N, 3, H, W) in rows of `COLUMNS`, each twice as high and wide."""
    larger = images.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    grid: Tensor = make_grid(larger, nrow=COLUMNS, padding=GAP, pad_value=255)
    return grid


def below_each_other(images: Sequence[Tensor]) -> Tensor:
    """uint8 images, with white beside the narrower ones and between them."""
    width = max(image.shape[2] for image in images)
    padded = [pad(image, (0, width - image.shape[2], 0, 4 * GAP), value=255) for image in images]
    return torch.cat(padded, dim=1)


def colored_maps(maps: Tensor) -> Tensor:
    """Feature maps of shape (N, H, W), 0 or more, in rows of `COLUMNS`, each from 0 to its largest.

    Returns:
        A uint8 image: dark is 0, yellow is the largest value of its map.
    """
    shares = maps / maps.amax(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)
    levels = (shares * 255).round().long()
    factor = max(1, TILE // maps.shape[-1])
    levels = levels.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)
    colored = _viridis()[levels].permute(0, 3, 1, 2)
    return _grid(colored, COLUMNS, GAP)


def _grid(images: Tensor, columns: int, gap: int) -> Tensor:
    """uint8 images of shape (N, 3, H, W), white between them and nothing around them."""
    grid: Tensor = make_grid(images, nrow=columns, padding=gap, pad_value=255)
    # A single image is given no border.
    return grid if len(images) == 1 else grid[:, gap:-gap, gap:-gap]


def _viridis() -> Tensor:
    """256 colours, uint8 of shape (256, 3)."""
    corners = [unlabel_rgb(color) for color in validate_colors(sequential.Viridis, "rgb")]
    at = numpy.linspace(0, len(corners) - 1, 256)
    channels = [
        numpy.interp(at, range(len(corners)), channel) for channel in zip(*corners, strict=True)
    ]
    return torch.from_numpy(numpy.stack(channels, axis=1)).round().to(torch.uint8)
