"""What trials leave behind: the best weights, and what it takes to go on after an interruption.

Each file carries a digest, is written whole, and is kept only while it is of use: weights while
they can still win, states until their trial has ended.
"""

import io
import logging
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.errors import UserError
from data.files import always
from data.weights import packed, unpacked
from studies.patience import Unreachable
from studies.results import TrialRecord, rank
from studies.stores import WEIGHTS_NAME, Store, study_store
from studies.study import OpenedStudy

STATES = 2
"""Of a running trial: the newest, and the one before, for the case that the newest is damaged."""
DIGEST_SIZE = sha256().digest_size

_STATE = re.compile(r"trial-(\d+)-epoch-(\d+)\.state")
_ANY = re.compile(r"\.?trial-(\d+)(?:-epoch-\d+)?\.(?:state|safetensors)(?:-\w+)?")
"""The two, and what writers that were killed have left beside them."""

Outlines = Callable[[set[int]], Sequence[TrialRecord]]
"""The trials of these numbers, and the best of the study, as many as are kept."""

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
    """The checkpoints of one study; all its workers reach them."""

    store: Store

    def save(
        self,
        trial_number: int,
        checkpoint: Checkpoint,
        may_appear: Callable[[], bool] = always,
    ) -> bool:
        """Write a trial's checkpoint in place of its earlier one.

        Args and Returns: see `Store.write`.

        Raises:
            OSError: it cannot be written; the earlier one is still there.
        """
        metadata = {
            "trial": str(trial_number),
            "epoch": str(checkpoint.epoch),
            "validation_accuracy": repr(checkpoint.validation_accuracy),
        }
        content = packed(checkpoint.weights, metadata)
        return self.store.write(weights_name(trial_number), content, may_appear)

    def accuracy_of(self, trial_number: int, expected: float, give_up: bool = False) -> float:
        """The accuracy of a trial's weights if it is the expected one, else one below all.

        A worker that dies between two files leaves weights of an epoch that the state has not.

        Args:
            give_up: whether weights that cannot be read are as good as damaged.

        Raises:
            Unreachable: they may be there, but cannot be read at the moment.
        """
        try:
            with reaching():
                found = self._load(trial_number).validation_accuracy
        except (FileNotFoundError, ValueError, LookupError):
            return -1.0
        except Unreachable:
            if give_up:
                return -1.0
            raise
        return found if found == expected else -1.0

    def load(self, trial_number: int) -> Checkpoint:
        """Read a trial's checkpoint.

        Raises:
            UserError: there is none, it is damaged, or it cannot be read.
        """
        location = self.store.location(weights_name(trial_number))
        try:
            return self._load(trial_number)
        except FileNotFoundError:
            raise UserError(
                f"{location}: no checkpoint of trial {trial_number} here; run this where the "
                "workers wrote it, with the same --directory and --checkpoints"
            ) from None
        except OSError as error:
            raise UserError(f"{location}: cannot be read ({error.strerror})") from error
        except (ValueError, LookupError) as error:
            raise UserError(f"{location}: a damaged checkpoint ({error})") from error

    def _load(self, trial_number: int) -> Checkpoint:
        weights, metadata = unpacked(self.store.read(weights_name(trial_number)))
        if metadata["trial"] != str(trial_number):
            raise ValueError(f"it is of trial {metadata['trial']}")
        return Checkpoint(weights, int(metadata["epoch"]), float(metadata["validation_accuracy"]))

    def save_state(
        self, trial_number: int, resumable: Resumable, may_appear: Callable[[], bool] = always
    ) -> bool:
        """Write where a trial can be taken up again; the state before it stays, older ones go.

        Args and Returns: see `Store.write`.

        Raises:
            OSError: it cannot be written; what was there still is.
            TypeError, AttributeError, PicklingError: there is something else in the state than
                tensors, numbers, text and containers of them.
        """
        # First, as all else may take minutes: what another worker adds meanwhile is not ours.
        states = self._states(trial_number)
        epoch = len(resumable.accuracies)
        file = io.BytesIO()
        file.write(bytes(DIGEST_SIZE))
        fields = {"trial": trial_number, "accuracies": resumable.accuracies}
        torch.save({**fields, "state": resumable.state}, file)
        content = file.getbuffer()
        content[:DIGEST_SIZE] = sha256(content[DIGEST_SIZE:]).digest()
        if not self.store.write(state_name(trial_number, epoch), content, may_appear):
            return False
        # One of a later epoch is of an attempt that could not go on, and was begun anew.
        kept = sorted(other for other in {*states, epoch} if other <= epoch)[-STATES:]
        for other in states.keys() - set(kept):
            self.store.remove(states[other])
        return True

    def load_state(
        self, trial_number: int, give_up: bool = False, reported: int = 0
    ) -> Resumable | None:
        """Where a trial can be taken up again; None if it has to begin anew.

        That is so if there is no state, or none that is whole.

        Args:
            give_up: whether a state that cannot be read is as good as damaged, if it can be seen.
            reported: the last epoch that the study knows of. Its state, or one shortly before, is
                looked for by name as well: on NFS a list of names may be a minute old.

        Raises:
            Unreachable: there may be one, but it cannot be read at the moment.
        """
        with reaching():
            listed = self._states(trial_number)
        # The last is written while the next epoch is trained.
        near = range(max(1, reported - STATES), reported + 1)
        states = {epoch: state_name(trial_number, epoch) for epoch in near} | listed
        for epoch in sorted(states, reverse=True):
            try:
                with reaching():
                    content = self.store.read(states[epoch])
                return _resumable(content, trial_number, epoch)
            except FileNotFoundError:
                continue
            except (
                Unreachable,
                ValueError,
                LookupError,
                TypeError,
                RuntimeError,
                pickle.UnpicklingError,
            ) as error:
                if isinstance(error, Unreachable) and not give_up:
                    raise
                logger.warning(
                    "trial %d: its state after epoch %d cannot be used: %s: %s",
                    trial_number,
                    epoch,
                    self.store.location(states[epoch]),
                    str(error).partition("\n")[0],
                )
        if listed:
            logger.warning("trial %d begins anew: no state of it can be used", trial_number)
        return None

    def _states(self, trial_number: int) -> dict[int, str]:
        """The names of a trial's states, by the epoch that they are of."""
        matches = (_STATE.fullmatch(name) for name in self.store.names())
        return {
            int(match[2]): match[0] for match in matches if match and int(match[1]) == trial_number
        }

    def trial_numbers(self) -> set[int]:
        """The trials that have weights here.

        Raises:
            OSError: the store cannot be reached.
        """
        matches = (WEIGHTS_NAME.fullmatch(name) for name in self.store.names())
        return {int(match[1]) for match in matches if match}

    def tidy(self, outlines: Outlines, keep: int) -> None:
        """Remove what is of no more use, see `superfluous`.

        What cannot be removed is warned of; the next to call this tries again.
        """
        try:
            for name in superfluous(self.store.names(), outlines, keep):
                self.store.remove(name)
        except OSError as error:
            logger.warning(
                "what is of no more use cannot be removed: %s: %s", error.filename, error.strerror
            )


@contextmanager
def reaching() -> Iterator[None]:
    """Tell what is missing from what is only out of reach."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unreachable(f"{error.filename}: {error.strerror}") from error


def weights_name(trial_number: int) -> str:
    return f"trial-{trial_number:05d}.safetensors"


def state_name(trial_number: int, epoch: int) -> str:
    return f"trial-{trial_number:05d}-epoch-{epoch:05d}.state"


def _resumable(content: bytes, trial_number: int, epoch: int) -> Resumable:
    """What `save_state` has written.

    Raises:
        ValueError, LookupError, TypeError, RuntimeError, UnpicklingError: it is something else.
    """
    saved = memoryview(content)[DIGEST_SIZE:]
    if sha256(saved).digest() != content[:DIGEST_SIZE]:
        raise ValueError("its digest does not fit")
    # Tensors, numbers, text and containers of them alone: nothing in it is run.
    found = torch.load(io.BytesIO(saved), map_location="cpu", weights_only=True)
    if (found["trial"], len(found["accuracies"])) != (trial_number, epoch):
        raise ValueError(f"it is of trial {found['trial']}, epoch {len(found['accuracies'])}")
    return Resumable(tuple(found["accuracies"]), found["state"])


def superfluous(names: Iterable[str], outlines: Outlines, keep: int) -> list[str]:
    """Which files can go: of trials that have ended, all but the weights of the best `keep`.

    A trial that has no outline is not known to have ended: its files stay.
    """
    numbers = {name: int(match[1]) for name in names if (match := _ANY.fullmatch(name))}
    records = outlines(set(numbers.values()))
    ended = {record.number for record in records if record.state not in ("running", "waiting")}
    kept = {weights_name(record.number) for record in rank(records)[:keep]}
    return [name for name, number in numbers.items() if number in ended and name not in kept]


def open_checkpoints(
    opened: OpenedStudy, root: Path, place: str | None, to_write: bool = True
) -> CheckpointDirectory:
    """The study's checkpoints, in a place that all its workers share.

    Args:
        root: the directory for what a run makes.
        place: another one for checkpoints alone: a folder, or `s3://bucket/prefix`.
        to_write: whether it is not enough to read there.

    Raises:
        UserError, OSError: see `open_store`.
    """
    return CheckpointDirectory(study_store(opened.directory(root), place, to_write))
