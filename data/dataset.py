"""Three sources of images behind one function, `load_dataset`.

Whatever the source, the result is uint8 tensors that are memory-mapped from a cache file, so
that a second worker starts in a blink and shares the pages of the first.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from filelock import FileLock
from safetensors.torch import save
from torch import Tensor

from data.files import write_whole

IMAGE_SIZE = 32

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Mean and standard deviation of each colour channel, of values scaled to [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


# What the literature uses for CIFAR-10 (computed on its 50,000 training images).
CIFAR10_NORMALISATION = Normalisation((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


@dataclass(frozen=True, slots=True)
class Split:
    """Images, uint8 of shape (N, 3, 32, 32), and their labels, int64 of shape (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Tensor) -> "Split":
        """The images at `indices` (int64, shape (M,)), in that order."""
        return Split(self.images[indices], self.labels[indices])

    def batch(self, indices: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """The images and labels at `indices`, on a device.

        Args:
            indices: int64, shape (M,), where the images are.
        """
        chosen = self.select(indices)
        if self.images.device.type == device.type:
            return chosen.images, chosen.labels
        # From pinned memory, so that the GPU need not be waited for.
        return (
            chosen.images.pin_memory().to(device, non_blocking=True),
            chosen.labels.pin_memory().to(device, non_blocking=True),
        )

    def to(self, device: torch.device) -> "Split":
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, slots=True)
class Dataset:
    """A data set in memory; a label is an index into `classes`."""

    source: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    digest: str
    """SHA-256 over classes, images and labels: the same on every machine with the same data."""
    normalisation: Normalisation | None
    """Known constants, or None where they are to be computed from the training split."""
    notice: str | None
    """What the user should know of how the data were read, or None."""


@dataclass(frozen=True, slots=True)
class DecodedImages:
    """What a source gives when it is read for the first time."""

    classes: tuple[str, ...]
    train: Split
    test: Split
    notice: str | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """How to read a data set, and how to know that it is still the same."""

    name: str
    cache_name: str
    fingerprint: Callable[[], str]
    decode: Callable[[], DecodedImages]
    normalisation: Normalisation | None = None


def load_dataset(source: str, directory: Path) -> Dataset:
    """Load a data set, decoding it only if it has not been decoded before.

    Args:
        source: `cifar10-mini` (ships with hpsearch), `cifar10` (downloaded on first use), or the
            path of a folder `PATH/{train,test}/<class>/*.{jpg,png,…}`.
        directory: where downloads and the cache files are kept, in `directory/datasets`.

    Raises:
        UserError: the data cannot be downloaded or read; the message names the file.
    """
    return load_source(_find_source(source, directory / "datasets"), directory / "datasets")


def _find_source(source: str, cache_directory: Path) -> Source:
    # Imported here because each of them needs the dataclasses of this module.
    from data.cifar10 import cifar10_mini_source, cifar10_source
    from data.folder import folder_source

    if source == "cifar10-mini":
        return cifar10_mini_source()
    if source == "cifar10":
        return cifar10_source(cache_directory)
    return folder_source(Path(source))


def load_source(source: Source, cache_directory: Path) -> Dataset:
    """Read `source` from its cache file, which is made or made anew where necessary."""
    fingerprint = source.fingerprint()
    cache = cache_directory / f"{source.cache_name}.safetensors"
    dataset = _read_cache(cache, source, fingerprint)
    if dataset is None:
        cache_directory.mkdir(parents=True, exist_ok=True)
        # The file appears whole or not at all; the lock only saves a second worker the work.
        with FileLock(cache.with_suffix(".lock")):
            dataset = _read_cache(cache, source, fingerprint)
            if dataset is None:
                logger.info("reading the images of %s", source.name)
                _write_cache(cache, source.decode(), fingerprint)
                dataset = _read_cache(cache, source, fingerprint)
    if dataset is None:
        raise RuntimeError(f"{cache} cannot be read just after it was written")
    if dataset.notice:
        logger.warning("%s: %s", source.name, dataset.notice)
    return dataset


def _read_cache(path: Path, source: Source, fingerprint: str) -> Dataset | None:
    """The data set in a cache file, or None if there is none or it is of other data."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("fingerprint") != fingerprint:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError):
        return None
    return Dataset(
        source=source.name,
        classes=tuple(json.loads(metadata["classes"])),
        train=Split(tensors["train_images"], tensors["train_labels"]),
        test=Split(tensors["test_images"], tensors["test_labels"]),
        digest=metadata["digest"],
        normalisation=source.normalisation,
        notice=metadata["notice"] or None,
    )


def _write_cache(path: Path, images: DecodedImages, fingerprint: str) -> None:
    tensors = {
        "train_images": images.train.images,
        "train_labels": images.train.labels,
        "test_images": images.test.images,
        "test_labels": images.test.labels,
    }
    metadata = {
        "fingerprint": fingerprint,
        "classes": json.dumps(images.classes),
        "digest": _digest(images.classes, list(tensors.values())),
        "notice": images.notice or "",
    }
    write_whole(path, save(tensors, metadata))


def _digest(classes: tuple[str, ...], tensors: list[Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(classes).encode())
    for tensor in tensors:
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
