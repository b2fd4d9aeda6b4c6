"""What trials leave on disk: the best weights, and what it takes to go on after an interruption.

Written whole, and kept only while it is of use: weights while they can still win, a state until its
trial has ended.
"""

import io
import logging
import pickle
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from data.errors import UserError
from data.files import write_whole
from studies.results import TrialRecord, rank

_NAME = re.compile(r"trial-(\d+)\.safetensors")
_STATE = re.compile(r"trial-(\d+)\.state|\.trial-(\d+)\.(?:state|safetensors)-\w+")
DIGEST_SIZE = sha256().digest_size

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The weights of a trial's best epoch."""

    weights: Mapping[str, Tensor]
    epoch: int
    validation_accuracy: float


@dataclass(frozen=True, slots=True)
class Resumable:
    """Where a trial can be taken up again."""

    accuracies: tuple[float, ...]
    """On validation, after each epoch so far, in [0, 1]."""
    state: Mapping[str, Any]
    """`EpochResult.state` of the last of them."""


@dataclass(frozen=True, slots=True)
class CheckpointDirectory:
    """The checkpoints of one study; all its workers reach this directory."""

    path: Path

    def file(self, trial_number: int) -> Path:
        return self.path / f"trial-{trial_number:05d}.safetensors"

    def save(self, trial_number: int, checkpoint: Checkpoint) -> None:
        """Write a trial's checkpoint in place of its earlier one.

        Raises:
            OSError: it cannot be written; the earlier one is still there.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        # Contiguous for safetensors, which stores no memory format.
        weights = {name: tensor.contiguous().cpu() for name, tensor in checkpoint.weights.items()}
        metadata = {
            "trial": str(trial_number),
            "epoch": str(checkpoint.epoch),
            "validation_accuracy": repr(checkpoint.validation_accuracy),
        }
        write_whole(self.file(trial_number), save(weights, metadata))

    def accuracy_of(self, trial_number: int, expected: float) -> float:
        """The accuracy of a trial's weights if it is the expected one, else one below all.

        A worker that dies between two files leaves weights of an epoch that the state has not.
        """
        try:
            found = self.load(trial_number).validation_accuracy
        except UserError:
            return -1.0
        return found if found == expected else -1.0

    def load(self, trial_number: int) -> Checkpoint:
        """Read a trial's checkpoint.

        Raises:
            UserError: there is none, or it is damaged.
        """
        path = self.file(trial_number)
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata()
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if metadata["trial"] != str(trial_number):
                raise ValueError(f"it is of trial {metadata['trial']}")
            return Checkpoint(
                weights, int(metadata["epoch"]), float(metadata["validation_accuracy"])
            )
        except FileNotFoundError:
            raise UserError(
                f"{path}: no checkpoint of trial {trial_number} here; "
                "run this where the workers wrote it, with the same --directory"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            raise UserError(f"{path}: a damaged checkpoint ({error})") from error

    def _state_file(self, trial_number: int) -> Path:
        return self.path / f"trial-{trial_number:05d}.state"

    def save_state(self, trial_number: int, resumable: Resumable) -> None:
        """Write where a trial can be taken up again, in place of what was there.

        Raises:
            OSError: it cannot be written; what was there still is.
            TypeError, AttributeError, PicklingError: there is something else in the state than
                tensors, numbers, text and containers of them.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        file = io.BytesIO()
        file.write(bytes(DIGEST_SIZE))
        torch.save({"accuracies": resumable.accuracies, "state": resumable.state}, file)
        content = file.getbuffer()
        content[:DIGEST_SIZE] = sha256(content[DIGEST_SIZE:]).digest()
        write_whole(self._state_file(trial_number), content)

    def load_state(self, trial_number: int) -> Resumable | None:
        """Where a trial can be taken up again; None if it has to begin anew."""
        path = self._state_file(trial_number)
        try:
            with path.open("rb") as file:
                digest = file.read(DIGEST_SIZE)
                content = file.read()
            if sha256(content).digest() != digest:
                raise ValueError("it is damaged")
            # Tensors, numbers, text and containers of them alone: nothing in it is run.
            found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            return Resumable(tuple(found["accuracies"]), found["state"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
            reason = str(error).partition("\n")[0]
            logger.warning("trial %d begins anew: %s: %s", trial_number, path, reason)
            return None

    def remove_states(self, trial_numbers: Container[int]) -> None:
        """Remove the states of these trials, and what writers that were killed have left."""
        if not self.path.is_dir():
            return
        for file in self.path.iterdir():
            match = _STATE.fullmatch(file.name)
            if match and int(match[1] or match[2]) in trial_numbers:
                file.unlink(missing_ok=True)

    def trial_numbers(self) -> set[int]:
        """The trials that have a checkpoint."""
        if not self.path.is_dir():
            return set()
        matches = (_NAME.fullmatch(file.name) for file in self.path.iterdir())
        return {int(match[1]) for match in matches if match}

    def remove(self, trial_numbers: Iterable[int]) -> None:
        for number in trial_numbers:
            # Another worker may have been faster.
            self.file(number).unlink(missing_ok=True)


def superfluous(present: set[int], records: Sequence[TrialRecord], keep: int) -> set[int]:
    """Which checkpoints can go: of trials that have ended, all but the best `keep`.

    A trial that is not in `records` has begun since they were read: its checkpoint stays.
    """
    best = {record.number for record in rank(records)[:keep]}
    return present & ended(records) - best


def ended(records: Sequence[TrialRecord]) -> set[int]:
    """The trials that will not go on."""
    return {record.number for record in records if record.state not in ("running", "waiting")}
