"""Writing the folder in which a model leaves the study: whole, or not at all."""

import html
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from data.errors import UserError
from data.files import unwritable
from data.weights import packed
from studies.confirmation import TestResult
from studies.text import printable, shortened

LONGEST_CELL = 200  # characters
FILES = {"model.safetensors", "trial.json", "README.md"}


def check_output(output: Path) -> None:
    """Refuse to replace anything but an earlier export, and what cannot be written at all.

    Raises:
        UserError: `output` exists and holds something else, or its place cannot be written.
    """
    earlier = output.is_dir() and {file.name for file in output.iterdir()} <= FILES
    if not earlier and (output.exists() or output.is_symlink()):
        raise UserError(f"{output}: exists and is not an exported model; give another --output")
    reason = unwritable(output.absolute().parent)
    if reason:
        raise UserError(f"{output}: {reason}")


def write_export(output: Path, weights: Mapping[str, Tensor], description: dict[str, Any]) -> None:
    """Write `model.safetensors`, `trial.json` and `README.md` to the folder `output`.

    An earlier export there is replaced.

    Raises:
        UserError: `output` holds something else, or cannot be written.
    """
    check_output(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}-"))
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror})") from error
    try:
        (temporary / "model.safetensors").write_bytes(packed(weights, {}))
        (temporary / "trial.json").write_text(json.dumps(description, indent=2) + "\n")
        (temporary / "README.md").write_text(readme(description, output.name))
        temporary.chmod(0o755)
        for file in temporary.iterdir():
            file.chmod(0o644)  # As the checkpoints.
            _sync(file)
        _replace(output, temporary)
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(output: Path, temporary: Path) -> None:
    """Put the new folder in the old one's place; a folder cannot be renamed over another."""
    if not output.exists():
        temporary.rename(output)
        return
    old = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}-old-"))
    output.rename(old / "export")
    temporary.rename(output)
    shutil.rmtree(old, ignore_errors=True)


def readme(description: Mapping[str, Any], name: str) -> str:
    """The text that says to a person what is in the folder and how to use it."""
    test = description["test_accuracy"]
    before = description.get("before")
    searched = before or description
    accuracies = searched["validation_accuracy_per_epoch"]
    data = description["data"]
    lines = [
        f"# {description['study']}, trial {description['trial']}",
        "",
        f"An image classifier for {len(data['classes'])} classes "
        f"({', '.join(data['classes'])}), found by hpsearch on `{data['source']}`.",
    ]
    if before:
        lines += [
            "",
            f"It was trained anew on the training and validation images together, for "
            f"{len(accuracies)} epochs. The weights are those of the last epoch: no images were "
            "left to choose an epoch by, and it has no validation accuracy.",
            "",
            "| this model | accuracy |",
            "|---|---|",
            *_test_rows(description),
            "",
            "The search chose its parameters by another model, with the same seed but trained on "
            "the training images alone:",
            "",
            "| the model before | accuracy |",
        ]
    else:
        lines += ["", "| | accuracy |"]
    lines += [
        "|---|---|",
        f"| validation, epoch {searched['best_epoch']} of {len(accuracies)} "
        f"| {searched['validation_accuracy']:.2%} |",
    ]
    if test is not None and not before:
        lines += _test_rows(description)
    confirmed = searched.get("confirmation")
    if confirmed:
        test_of_all = confirmed["test"]
        seeds, diverged = confirmed["seeds"], confirmed["winner"]["diverged"]
        over = f"mean of {seeds} seeds" if seeds > 1 else "1 seed"
        lost = f", {diverged} diverged and counted as 0" if diverged else ""
        lines.append(f"| validation, {over}{lost} | {confirmed['winner']['mean']:.2%} |")
        if test_of_all:
            over = TestResult(**test_of_all).out_of(seeds) or over
            lines.append(f"| test, {over} | {test_of_all['mean']:.2%} |")
    lines += ["", "## Parameters", "", "| | |", "|---|---|"]
    lines += [
        f"| {_cell(key)} | {_cell(value)} |" for key, value in description["parameters"].items()
    ]
    of_before = " of the model before" if before else ""
    lines += ["", f"Validation accuracy{of_before} after each epoch: "]
    lines[-1] += ", ".join(f"{accuracy:.2%}" for accuracy in accuracies) + "."
    if test is not None:
        lines += [
            "",
            "## Use",
            "",
            "With hpsearch installed (in its folder: `pip install -e .`), beside this folder:",
            "",
            "```python",
            "from model.exported import load",
            "",
            f'classifier = load("{name}")',
            'for prediction in classifier.predict(["photo.jpg"]):',
            '    print(f"{prediction.label} {prediction.probability:.1%}")',
            "```",
            "",
            f"or on the command line: `hpsearch predict {name} photo.jpg`.",
        ]
    lines += [
        "",
        "## Files",
        "",
        "- `model.safetensors`: the weights, with the names of the PyTorch modules, and a digest.",
        "- `trial.json`: parameters, seed, accuracies, data set with its digest and "
        "normalisation, versions.",
        "",
    ]
    return "\n".join(lines)


def _cell(value: object) -> str:
    """As a cell of a table in Markdown, which is shown as it is whatever stands in it."""
    text = html.escape(printable(shortened(str(value), LONGEST_CELL)), quote=False)
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", " ".join(text.split()))


def _test_rows(description: Mapping[str, Any]) -> list[str]:
    flips = description["test_accuracy_with_flips"]
    return [
        f"| test (never seen by the search) | {description['test_accuracy']:.2%} |",
        f"| test, each image averaged with its mirror image | {flips:.2%} |",
    ]
