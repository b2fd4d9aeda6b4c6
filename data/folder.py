"""A folder of images as a data set: `PATH/{train,test}/<class>/*.{jpg,png,…}`."""

import hashlib
import os
from pathlib import Path

import torch

from data.dataset import IMAGE_SIZE, DecodedImages, Source, Split
from data.errors import UserError
from data.images import read_image
from data.split import stratified_split

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}

# Of the images in train/, where the folder has no test/.
TEST_FRACTION = 0.2


def folder_source(path: Path) -> Source:
    """A folder as a source. Nothing is read yet but the names in it."""
    if not path.is_dir():
        raise UserError(
            f"data source {str(path)!r}: no such folder; "
            "give cifar10-mini, cifar10, or a folder that holds train/<class>/*.png"
        )
    resolved = path.resolve()
    location = hashlib.sha256(str(resolved).encode()).hexdigest()[:12]
    return Source(
        name=str(path),
        cache_name=f"{resolved.name}-{location}",
        fingerprint=lambda: _fingerprint(resolved),
        decode=lambda: _decode(resolved),
    )


def image_files(directory: Path) -> list[str]:
    """The image files in a directory and those below it, by their names, sorted."""
    # Strings, not paths: every start of a worker lists the folder, and paths take three times
    # as long.
    return sorted(
        os.path.join(parent, name)
        for parent, _, names in os.walk(directory)
        for name in names
        if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")
    )


def _fingerprint(path: Path) -> str:
    """Changes when an image is added, removed, renamed or rewritten."""
    digest = hashlib.sha256(f"{IMAGE_SIZE} {TEST_FRACTION}".encode())
    for split in ("train", "test"):
        for file in image_files(path / split):
            status = os.stat(file)
            name = file.removeprefix(str(path))
            digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _class_names(directory: Path) -> tuple[str, ...]:
    return tuple(
        sorted(
            entry.name
            for entry in directory.iterdir()
            if entry.is_dir() and not entry.name.startswith(".")
        )
    )


def _read_split(directory: Path, classes: tuple[str, ...]) -> Split:
    images, labels = [], []
    for label, name in enumerate(classes):
        files = image_files(directory / name)
        if not files and (directory / name).is_dir():
            raise UserError(f"{directory / name}: no images in this class; add some or remove it")
        images += [read_image(Path(file)) for file in files]
        labels += [label] * len(files)
    return Split(torch.stack(images), torch.tensor(labels, dtype=torch.int64))


def _decode(path: Path) -> DecodedImages:
    train, test = path / "train", path / "test"
    if not train.is_dir():
        raise UserError(f"{path}: no folder train/ in it; put the images in train/<class>/")
    classes = _class_names(train)
    if len(classes) < 2:
        found = f"only {classes[0]!r}" if classes else "none"
        raise UserError(f"{train}: needs two or more folders, one a class; found {found}")
    images = _read_split(train, classes)
    if test.is_dir():
        unknown = sorted(set(_class_names(test)) - set(classes))
        if unknown:
            raise UserError(f"{test}: class {unknown[0]!r} is not in {train}")
        if not image_files(test):
            raise UserError(f"{test}: no images in it; add some, or remove the folder")
        return DecodedImages(classes, images, _read_split(test, classes))
    kept, held_out = stratified_split(images.labels, TEST_FRACTION, seed=0)
    return DecodedImages(
        classes,
        images.select(kept),
        images.select(held_out),
        notice=f"no folder test/: {len(held_out)} of {len(images)} training images "
        f"({TEST_FRACTION:.0%} of each class) were set aside as the test split",
    )
