"""CIFAR-10: the embedded sample that ships with hpsearch, and the whole of it, downloaded.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

import hashlib
import io
import tarfile
from collections import defaultdict
from pathlib import Path

import torch

from data.dataset import CIFAR10_NORMALISATION, DecodedImages, Source, Split
from data.errors import UserError
from data.images import decode_image

MINI_ARCHIVE = Path(__file__).parent / "cifar10_mini" / "images.tar.xz"


def cifar10_mini_source() -> Source:
    """500 training and 100 test images of each class; see `cifar10_mini/README.md`."""
    return Source(
        name="cifar10-mini",
        cache_name="cifar10-mini",
        fingerprint=lambda: hashlib.sha256(MINI_ARCHIVE.read_bytes()).hexdigest(),
        decode=lambda: decode_archive(MINI_ARCHIVE.read_bytes()),
        normalisation=CIFAR10_NORMALISATION,
    )


def decode_archive(content: bytes) -> DecodedImages:
    """Decode a `tar.xz` archive of `{train,test}/<class>/<image>`."""
    found = defaultdict(list)
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:xz") as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file is None:
                continue
            split, class_name, _ = member.name.split("/")
            found[split].append((class_name, decode_image(file.read())))
    classes = tuple(sorted({class_name for class_name, _ in found["train"]}))

    def split_of(name: str) -> Split:
        labels = [classes.index(class_name) for class_name, _ in found[name]]
        return Split(torch.stack([image for _, image in found[name]]), torch.tensor(labels))

    return DecodedImages(classes, split_of("train"), split_of("test"))


def cifar10_source(cache_directory: Path) -> Source:
    """All 60,000 images, downloaded by torchvision on first use and checked by their digest."""
    return Source(
        name="cifar10",
        cache_name="cifar10",
        fingerprint=lambda: "torchvision's CIFAR10",
        decode=lambda: _download(cache_directory),
        normalisation=CIFAR10_NORMALISATION,
    )


def _download(directory: Path) -> DecodedImages:
    from torchvision.datasets import CIFAR10  # Takes two seconds; needed only once.

    try:
        train = CIFAR10(str(directory), train=True, download=True)
        test = CIFAR10(str(directory), train=False)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"cifar10: cannot be downloaded ({error}); instead, give a folder that holds "
            "train/<class>/*.png and test/<class>/*.png as the data source, or cifar10-mini"
        ) from error
    return DecodedImages(tuple(train.classes), _split(train), _split(test))


def _split(dataset: "torch.utils.data.Dataset") -> Split:  # type: ignore[type-arg]
    images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()  # type: ignore[attr-defined]
    return Split(images, torch.tensor(dataset.targets))  # type: ignore[attr-defined]
