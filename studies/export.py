"""Writing the folder in which a model leaves the study: whole, or not at all."""

import glob
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.files import unwritable, write_whole
from data.sums import SUMS, digest, sums
from studies.card import FORMATS, model_card

CARD = "README.md"
WEIGHTS = "model.safetensors"
FILES = {WEIGHTS, "trial.json", CARD, SUMS, *FORMATS}
LONGEST_REPLACEMENT_SECONDS = 60.0
"""Until a folder that was moved aside is one that a killed process has left."""
_ONE_OF_SEVERAL = re.compile(r"\d+-trial-\d+")
_SUM_OF_CARD = re.compile(rb"^[0-9a-f]{64} [ *]README\.md\n", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Model:
    """What a folder is to hold."""

    files: Mapping[str, bytes]
    """The weights, and graphs, by their names."""
    description: Mapping[str, Any]
    """For `trial.json` and the model card."""
    evaluation: Mapping[str, Any] | None = None
    """What `evaluation.json` says of the model, likewise, if it was evaluated."""

    def content(self, name: str) -> dict[str, bytes]:
        """All files of a folder of this name."""
        files = {
            **self.files,
            "trial.json": (json.dumps(self.description, indent=2) + "\n").encode(),
            CARD: model_card(self.description, name, self.evaluation).encode(),
        }
        return {**files, SUMS: sums(files)}


def with_evaluation(model: Model, kept: Path) -> Model:
    """The same with the figures of an `evaluation.json`, if that is of these very weights.

    Args:
        kept: the file, which may be missing or damaged.
    """
    try:
        figures = json.loads(kept.read_text())["models"][0]
        if figures["weights"] != sha256(model.files[WEIGHTS]).hexdigest():
            return model
        # A damaged one fails here, and not when the folder is written.
        model_card(model.description, "", figures)
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError):
        return model
    return replace(model, evaluation=figures)


def several_name(place: int, count: int, trial: int) -> str:
    """The folder of one of several models: they sort best first.

    Args:
        place: from 1, of `count`.
    """
    return f"{place:0{len(str(count))}}-trial-{trial}"


def check_output(output: Path) -> None:
    """Refuse to replace anything but an earlier export, and what cannot be written at all.

    One that a killed export had moved aside is put back first.

    Raises:
        UserError: `output` exists and holds something else, or its place cannot be written.
    """
    _put_back(output)
    earlier = _is_export(output) or (output.is_dir() and all(map(_is_of_several, output.iterdir())))
    if not earlier and (output.exists() or output.is_symlink()):
        raise UserError(f"{output}: exists and is not an exported model; give another --output")
    reason = unwritable(output.absolute().parent)
    if reason:
        raise UserError(f"{output}: {reason}")


def replaced_by_export(output: Path) -> str | None:
    """What stands at `output` and an export would replace, in words; None if there is nothing.

    It is one that passed `check_output`.
    """
    models = [output] if _is_export(output) else sorted(output.glob("*-trial-*"))
    described = [file for model in models if (file := model / "trial.json").exists()]
    if not described:
        return None
    if len(described) > 1:
        return f"{len(described)} models"
    try:
        description = json.loads(described[0].read_text())
        return f"the model of trial {description['trial']} of study {description['study']!r}"
    except (OSError, ValueError, KeyError, TypeError):
        return "a model whose trial.json cannot be read"


def _is_export(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    names = {file.name for file in folder.iterdir()}
    return not names or ("trial.json" in names and names <= FILES)


def _is_of_several(folder: Path) -> bool:
    return _ONE_OF_SEVERAL.fullmatch(folder.name) is not None and _is_export(folder)


def write_export(output: Path, model: Model) -> None:
    """Write a model to the folder `output`. An earlier export there is replaced.

    Raises:
        UserError: `output` holds something else, or cannot be written.
    """
    _write(output, model.content(output.name))


def write_exports(output: Path, models: Mapping[str, Model]) -> None:
    """Write models to folders of these names in `output`: all of them, or none; `write_export`."""
    _write(
        output,
        {
            f"{name}/{file}": content
            for name, model in models.items()
            for file, content in model.content(name).items()
        },
    )


def add_evaluation(folder: Path, evaluation: Mapping[str, Any]) -> bool:
    """Put the figures of an evaluation into the model card of an exported folder.

    Args:
        evaluation: what `evaluation.json` says of the model.

    Returns:
        Whether it was done: a card that somebody has edited is left as it is.

    Raises:
        OSError: the card cannot be read or written.
    """
    card, listed = folder / CARD, folder / SUMS
    content, digests = card.read_bytes(), listed.read_bytes()
    description = json.loads((folder / "trial.json").read_text())
    new = model_card(description, folder.resolve().name, evaluation).encode()
    # One that was killed between the two writes has left the card of the export; if that had
    # figures already, and these are others, it is taken for an edited one.
    exported = model_card(description, folder.resolve().name).encode()
    if sums({CARD: content}) not in digests and content not in (exported, new):
        return False
    write_whole(listed, _SUM_OF_CARD.sub(sums({CARD: new}), digests))
    write_whole(card, new)
    return True


def is_evaluation_of(folder: Path, evaluation: Mapping[str, Any]) -> bool:
    """Whether an evaluation is of the weights in a folder, which may be missing.

    Args:
        evaluation: as for `add_evaluation`.
    """
    try:
        return bool(digest(folder / WEIGHTS) == evaluation["weights"])
    except OSError:
        return False


def _write(output: Path, files: Mapping[str, bytes]) -> None:
    check_output(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}-"))
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror})") from error
    try:
        temporary.chmod(0o755)
        for name, content in files.items():
            file = temporary / name
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(content)
            file.chmod(0o644)  # As the checkpoints.
            _sync(file)
        for folder in {temporary, *((temporary / name).parent for name in files)}:
            _sync_names(folder)
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


def _sync_names(folder: Path) -> None:
    # Not every file system can.
    with suppress(OSError):
        _sync(folder)


def _replace(output: Path, temporary: Path) -> None:
    """Put the new folder in the old one's place; a folder cannot be renamed over another."""
    if not output.exists():
        temporary.rename(output)
        _sync_names(output.parent)
        return
    old = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}-old-"))
    try:
        output.rename(old / "export")
        temporary.rename(output)
        # Before the old one is removed.
        _sync_names(output.parent)
    finally:
        # Ctrl-C may come between the two.
        if not output.exists():
            (old / "export").rename(output)
        shutil.rmtree(old, ignore_errors=True)


def _put_back(output: Path) -> None:
    """Undo the first half of a `_replace` that was killed before the second."""
    if os.path.lexists(output):
        return
    # As many characters as `mkdtemp` adds: else the old one of another name would do.
    left = output.parent.glob(f".{glob.escape(output.name)}-old-{'?' * 8}/export")
    # Where nothing can be written, that is said next; another process may be at it, too.
    with suppress(OSError):
        ages = {export: time.time() - export.parent.stat().st_mtime for export in left}
        latest = min(ages, key=lambda export: ages[export], default=None)
        if latest and ages[latest] > LONGEST_REPLACEMENT_SECONDS:
            latest.rename(output)
            latest.parent.rmdir()
