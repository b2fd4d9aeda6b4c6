"""`hpsearch evaluate`: how good a trained model is, as a page to look at and as JSON."""

import json
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data.dataset import Dataset, load_dataset
from data.errors import UserError
from data.files import DEFAULT_ROOT, unwritable
from data.images import read_image
from data.sums import digest
from model.exported import load
from search.draw import offer_evaluation
from search.evaluate import (
    STEPS,
    ChosenImage,
    Evaluation,
    Subject,
    as_document,
    evaluate,
    paired,
)
from search.evaluation_page import MAPS, evaluation_page
from search.export import any_device
from search.pictures import below_each_other, colored_maps, png, rows_of
from search.run_export import export_study
from studies.artifacts import CONFIRMED, EXPORTED
from studies.config import DEFAULT_OBJECTIVE
from studies.export import CARD, WEIGHTS, add_evaluation, is_evaluation_of
from studies.page import write_text
from studies.study import OpenedStudy

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What was found, and the page that shows it."""

    evaluations: Sequence[Evaluation]
    page: Path


def evaluate_models(
    models: Sequence[Path | OpenedStudy],
    output: Path | None = None,
    chosen: str = "0",
    root: Path = DEFAULT_ROOT,
    place: str | None = None,
    source: str | None = None,
) -> Evaluated:
    """Run `hpsearch evaluate`: write `evaluation.html` and `evaluation.json` to a folder.

    The model card of an exported folder is given the figures, too, also of the one that `run` or
    `confirm` has written of a study. A study by itself keeps all, for the dashboard and for the
    cards of later exports.

    Args:
        models: one or two, each an exported folder or a study.
        output: the folder; by default it stands beside the (first) exported one, or here.
        chosen: of which image to show the feature maps: the index of a test image, or a file.
        root: where data sets and checkpoints are kept.
        place: of the checkpoints, if not below `root`.
        source: where this machine has the data, if not where the description says.

    Raises:
        UserError: there is no such model, its data are not here, or `output` cannot be written.
    """
    folder = output or _beside(models[0])
    reason = unwritable(folder)
    if reason:
        raise UserError(f"{folder}: {reason}")
    subjects = [
        _subject(model, name, root, place, source)
        for model, name in zip(models, _names(models), strict=True)
    ]
    dataset = load_dataset(source or subjects[0].description["data"]["source"], root)
    for subject in subjects:
        _check_data(subject, dataset)
    image = _image(chosen, dataset)
    with _progress(STEPS * len(subjects)) as tell:
        found = [evaluate(subject, dataset.test, image, any_device(), tell) for subject in subjects]
    document = as_document(found, dataset, image)
    texts = {
        "evaluation.json": json.dumps(document, indent=2, allow_nan=False) + "\n",
        "evaluation.html": evaluation_page(found, dataset, image),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    if len(models) == 1 and isinstance(models[0], OpenedStudy):
        files = {name: text.encode() for name, text in texts.items()}
        offer_evaluation(models[0], root, {**files, **_pictures(found[0], dataset)})
    for model, figures in zip(models, document["models"], strict=True):
        if isinstance(model, Path):
            _add_to_card(model, figures)
        else:
            for exported in (model.directory(root) / name for name in (EXPORTED, CONFIRMED)):
                if is_evaluation_of(exported, figures):
                    _add_to_card(exported, figures)
    return Evaluated(found, folder / "evaluation.html")


def _pictures(item: Evaluation, dataset: Dataset) -> dict[str, bytes]:
    """What of the page are pictures, as files."""
    maps = [colored_maps(part.maps[part.strongest(MAPS)]) for part in item.features]
    pictures = {"feature-maps.png": png(below_each_other(maps))}
    if item.mistakes:
        images = dataset.test.images[[mistake.index for mistake in item.mistakes]]
        pictures["mistakes.png"] = png(rows_of(images))
    return pictures


def _add_to_card(folder: Path, figures: Mapping[str, Any]) -> None:
    try:
        if not add_evaluation(folder, figures):
            logger.warning("%s: edited, and so left as it is", folder / CARD)
    except OSError as error:
        logger.warning("%s: left as it is (%s)", folder / CARD, error.strerror)
    except (ValueError, LookupError, TypeError):
        logger.warning("%s: left as it is (trial.json is damaged)", folder / CARD)


def _beside(model: Path | OpenedStudy) -> Path:
    if isinstance(model, OpenedStudy):
        return Path(f"{model.config.name}-evaluation")
    directory = model.resolve() if model.name in ("", "..") else model
    return directory.with_name(f"{directory.name}-evaluation")


def _names(models: Sequence[Path | OpenedStudy]) -> list[str]:
    """How each model is called: by no more of its path than tells it from the other.

    If nothing does, as of one that is compared with itself, by its place.
    """
    paths = [
        model.resolve().parts if isinstance(model, Path) else (model.config.name,)
        for model in models
    ]
    for length in range(1, 1 + max(map(len, paths))):
        names = [str(Path(*parts[-length:])) for parts in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{parts[-1]} ({number})" for number, parts in enumerate(paths, start=1)]


def _subject(
    model: Path | OpenedStudy, name: str, root: Path, place: str | None, source: str | None
) -> Subject:
    """A model with its description. That of a study is what `hpsearch export` would write."""
    if isinstance(model, Path):
        return _loaded(name, model)
    objective = model.config.trial.objective
    if objective != DEFAULT_OBJECTIVE:
        raise UserError(
            f"study {model.config.name!r} runs {objective!r}: only models of "
            f"{DEFAULT_OBJECTIVE!r} can be evaluated"
        )
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory) / "model"
        export_study(model, folder, root, place, source)
        return _loaded(name, folder)


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
    return Subject(name, classifier, description, digest(folder / WEIGHTS))


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

        def tell(done: str) -> None:
            progress.update(task, advance=1, description=done)
            logger.info("%s: %d of %d done", done, progress.tasks[0].completed, total)

        yield tell


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
