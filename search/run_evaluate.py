"""`hpsearch evaluate`: how good a trained model is, as a page to look at and as JSON."""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data.dataset import Dataset, load_dataset
from data.errors import UserError
from data.files import unwritable
from data.images import read_image
from model.exported import load
from search.evaluate import (
    STEPS,
    ChosenImage,
    Evaluation,
    Subject,
    as_document,
    evaluate,
    paired,
)
from search.evaluation_page import evaluation_page
from search.export import any_device
from search.run_export import export_study
from studies.config import DEFAULT_OBJECTIVE
from studies.ownership import OwnedStorage
from studies.page import write_text
from studies.study import open_study


def evaluate_models(
    models: Sequence[str],
    storage: OwnedStorage | None,
    root: Path,
    place: str | None,
    output: Path | None,
    source: str | None,
    chosen: str,
) -> str:
    """Run `hpsearch evaluate`: write `evaluation.html` and `evaluation.json` to a folder.

    Args:
        models: one or two, each an exported folder or the name of a study.
        storage: where the studies are; not needed for folders.
        place: of the checkpoints, if not below `root`.
        output: the folder; by default it stands beside the (first) exported one, or here.
        source: where this machine has the data, if not where the description says.
        chosen: of which image to show the feature maps: the index of a test image, or a file.

    Returns:
        What was found, in a line.

    Raises:
        UserError: there is no such model, its data are not here, or `output` cannot be written.
    """
    folder = output or _beside(models[0])
    reason = unwritable(folder)
    if reason:
        raise UserError(f"{folder}: {reason}")
    subjects = [_subject(model, storage, root, place, source) for model in models]
    dataset = load_dataset(source or subjects[0].description["data"]["source"], root)
    for subject in subjects:
        _check_data(subject, dataset)
    image = _image(chosen, dataset)
    with _progress(STEPS * len(subjects)) as tell:
        found = [evaluate(subject, dataset.test, image, any_device(), tell) for subject in subjects]
    text = json.dumps(as_document(found, dataset, image), indent=2, allow_nan=False) + "\n"
    write_text(folder / "evaluation.json", text)
    write_text(folder / "evaluation.html", evaluation_page(found, dataset, image))
    return f"{in_a_line(found)}; {folder / 'evaluation.html'}"


def _beside(model: str) -> Path:
    directory = Path(model)
    if directory.is_dir() and directory.name in ("", ".."):
        directory = directory.resolve()
    return directory.with_name(f"{directory.name}-evaluation")


def _subject(
    model: str,
    storage: OwnedStorage | None,
    root: Path,
    place: str | None,
    source: str | None,
) -> Subject:
    """A model with its description. That of a study is what `hpsearch export` would write."""
    if Path(model).is_dir():
        return _loaded(Path(model).resolve().name, Path(model))
    assert storage is not None
    objective = open_study(storage, model).config.trial.objective
    if objective != DEFAULT_OBJECTIVE:
        raise UserError(
            f"study {model!r} runs {objective!r}: only models of {DEFAULT_OBJECTIVE!r} can be "
            "evaluated"
        )
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory) / "model"
        export_study(storage, model, root, place, folder, source)
        return _loaded(model, folder)


def _loaded(name: str, folder: Path) -> Subject:
    classifier = load(folder)
    description = json.loads((folder / "trial.json").read_text())
    needed = {"study", "trial", "validation_accuracy_per_epoch"} - description.keys()
    needed |= {"source", "digest"} - description["data"].keys()
    if "before" in description:
        needed -= {"validation_accuracy_per_epoch"}
    if needed:
        raise UserError(
            f"{folder}: a damaged export (no {min(needed)} in trial.json); export it again"
        )
    return Subject(name, classifier, description)


def _check_data(subject: Subject, dataset: Dataset) -> None:
    stored = subject.description["data"]["digest"]
    if stored != dataset.digest:
        raise UserError(
            f"{subject.name} was trained on other data: the digest of {dataset.source} is "
            f"{dataset.digest[:12]} here, but {stored[:12]} in its description; give its own "
            "with --data"
        )


def _image(chosen: str, dataset: Dataset) -> ChosenImage:
    if not chosen.isdecimal():
        return ChosenImage(Path(chosen).name, read_image(Path(chosen)))
    index, count = int(chosen), len(dataset.test)
    if index >= count:
        raise UserError(f"--image {chosen}: there are {count} test images, from 0 on")
    label = dataset.classes[int(dataset.test.labels[index])]
    return ChosenImage(f"test image {index} ({label})", dataset.test.images[index])


@contextmanager
def _progress(total: int) -> Iterator[Callable[[str], None]]:
    """A bar at the terminal; what is called with what has been done moves it on."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not sys.stderr.isatty()
    ) as progress:
        task = progress.add_task("evaluating", total=total)
        yield lambda done: progress.update(task, advance=1, description=done)


def in_a_line(evaluations: Sequence[Evaluation]) -> str:
    """The figures that matter most, for people."""
    shown = [
        f"{item.subject.name}: test accuracy {item.test.plain:.2%} ({item.test.with_flips:.2%} "
        "averaged with mirror images)"
        for item in evaluations
    ]
    found = paired(evaluations)
    if found:
        shown.append(
            f"difference {100 * found.difference:+.2f} points (95% interval "
            f"{100 * found.low:+.2f} to {100 * found.high:+.2f})"
        )
    else:
        (item,) = evaluations
        shown.append(
            f"{item.corrupted:.2%} when corrupted, calibration error "
            f"{item.metrics.calibration.error:.2%}"
        )
    return "; ".join(shown)
