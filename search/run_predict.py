"""`hpsearch predict`: an exported model on images and directories of them."""

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from torch import Tensor

from data.errors import UserError
from data.folder import image_files
from data.images import read_image
from model.exported import Classifier, Prediction, load
from search.terminal import SafeConsole
from studies.text import printable

BATCH_SIZE = 256  # images
FIELDS = ("image", "label", "probability")

Batches = Iterable[Sequence[tuple[Path, Prediction]]]


def predict_images(model: Path, paths: Sequence[Path], form: str) -> int:
    """Run `hpsearch predict`: what the images show goes to stdout, all else to stderr.

    An image that cannot be read is named, and the others are classified.

    Args:
        model: a folder that export wrote.
        paths: image files, and directories of them.
        form: `text` or `csv`, which are written batch by batch, or `json`, at the end.

    Returns:
        The exit code: 0, or 1 if an image could not be read.

    Raises:
        UserError: the folder is not an exported model, or is damaged.
    """
    classifier = load(model)
    unreadable = 0

    def report(trouble: str) -> None:
        nonlocal unreadable
        unreadable += 1
        sys.stderr.write(printable(f"hpsearch: {trouble}") + "\n")

    files = list(_files(paths, report))
    with Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=SafeConsole(stderr=True),
        transient=True,
        # Else what is written to a file would go to the terminal.
        redirect_stdout=sys.stdout.isatty(),
        disable=len(files) < 2 or not sys.stderr.isatty(),
    ) as progress:
        WRITERS[form](_batches(classifier, progress.track(files), len(files), report))
    if unreadable and len(paths) + len(files) > 2:
        sys.stderr.write(f"hpsearch: {unreadable} could not be read; {len(files)} were tried\n")
    return 1 if unreadable else 0


def _files(paths: Sequence[Path], report: Callable[[str], None]) -> Iterator[Path]:
    for path in paths:
        if not path.is_dir():
            yield path
        elif found := image_files(path):
            yield from map(Path, found)
        else:
            report(f"{path}: no images in this directory")


def _batches(
    classifier: Classifier, files: Iterable[Path], count: int, report: Callable[[str], None]
) -> Iterator[Sequence[tuple[Path, Prediction]]]:
    """Of the images that can be read, in their order."""
    paths: list[Path] = []
    images: list[Tensor] = []
    for position, file in enumerate(files, start=1):
        try:
            images.append(read_image(file))
            paths.append(file)
        except UserError as error:
            report(str(error))
        if images and (len(images) == BATCH_SIZE or position == count):
            yield list(zip(paths, classifier.classify(torch.stack(images)), strict=True))
            paths, images = [], []


def _write_text(batches: Batches) -> None:
    for batch in batches:
        lines = [f"{image}: {found.label} {found.probability:.1%}" for image, found in batch]
        sys.stdout.write("".join(printable(line) + "\n" for line in lines))


def _write_csv(batches: Batches) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):  # That of a notebook is not.
        # A name that is no text is written as the file system has it.
        sys.stdout.reconfigure(errors="surrogateescape")
    rows = csv.writer(sys.stdout, lineterminator="\n")
    rows.writerow(FIELDS)
    for batch in batches:
        rows.writerows((image, found.label, found.probability) for image, found in batch)


def _write_json(batches: Batches) -> None:
    rows = [
        dict(zip(FIELDS, (str(image), found.label, found.probability), strict=True))
        for batch in batches
        for image, found in batch
    ]
    sys.stdout.write(json.dumps(rows, indent=2) + "\n")


WRITERS: Mapping[str, Callable[[Batches], None]] = {
    "text": _write_text,
    "csv": _write_csv,
    "json": _write_json,
}
