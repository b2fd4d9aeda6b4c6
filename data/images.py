"""Reading one image file."""

import io
from pathlib import Path

import numpy
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from data.dataset import IMAGE_SIZE
from data.errors import UserError


def read_image(path: Path) -> Tensor:
    """Read an image file of any size, grey or colour.

    The whole image is resized to 32x32, without keeping its aspect ratio: nothing is cut off.

    Returns:
        A uint8 tensor of shape (3, 32, 32).

    Raises:
        UserError: the file is missing, truncated, or not an image; the message names it.
    """
    try:
        return decode_image(path.read_bytes())
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def decode_image(content: bytes) -> Tensor:
    """Decode the bytes of an image file; see `read_image`."""
    try:
        with Image.open(io.BytesIO(content)) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):
                # 16 bits a pixel: Pillow's own conversion to RGB would clip, not scale.
                grey = (numpy.asarray(image).astype(numpy.int64) >> 8).clip(0, 255)
                image = Image.fromarray(grey.astype(numpy.uint8))
            image = image.convert("RGB")
            if image.size != (IMAGE_SIZE, IMAGE_SIZE):
                image = image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR)
            pixels = numpy.array(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
        raise UserError(f"not a readable image ({reason}); mend or remove it") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
