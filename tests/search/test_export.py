from pathlib import Path

import pytest
import torch

from data.errors import UserError
from search.export import _training_seconds, usable_trials
from studies.checkpoints import Checkpoint, CheckpointDirectory, weights_name
from studies.results import TrialRecord
from studies.stores import Folder
from tests.studies.trials import SMALL, trial

RANKED = [
    TrialRecord(number, "complete", {}, (value,), value, None, None, None, None, 1.0)
    for number, value in ((5, 0.9), (1, 0.8), (7, 0.7), (0, 0.6), (2, 0.5))
]


@pytest.fixture
def checkpoints(tmp_path: Path) -> CheckpointDirectory:
    """Of the best three trials."""
    directory = CheckpointDirectory(Folder(tmp_path))
    for item in RANKED[:3]:
        assert item.value is not None
        weights = {"of": torch.tensor(item.number)}
        directory.save(item.number, Checkpoint(weights, 1, item.value))
    return directory


def damage(checkpoints: CheckpointDirectory, number: int) -> None:
    content = checkpoints.store.read(weights_name(number))
    checkpoints.store.write(weights_name(number), content[:-1])


def test_the_best_is_used(
    checkpoints: CheckpointDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    item, checkpoint = next(usable_trials(RANKED, checkpoints))
    assert item.number == int(checkpoint.weights["of"]) == 5
    assert caplog.messages == []


def test_of_damaged_ones_the_next_best_is_used_and_they_are_named(
    checkpoints: CheckpointDirectory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage(checkpoints, 5)
    damage(checkpoints, 1)
    item, checkpoint = next(usable_trials(RANKED, checkpoints))
    assert item.number == int(checkpoint.weights["of"]) == 7
    reason = "a damaged checkpoint (its digest does not fit); the next best is trial 7"
    assert caplog.messages == [
        f"{tmp_path / weights_name(5)}: {reason}",
        f"{tmp_path / weights_name(1)}: {reason}",
    ]


def test_all_that_can_be_used_come_best_first(checkpoints: CheckpointDirectory) -> None:
    damage(checkpoints, 1)
    assert [item.number for item, _ in usable_trials(RANKED, checkpoints)] == [5, 7]


def test_so_if_the_best_could_not_be_written_or_only_an_earlier_epoch_of_it(
    checkpoints: CheckpointDirectory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / weights_name(5)).unlink()
    checkpoints.save(1, Checkpoint({}, 1, 0.75))
    assert next(usable_trials(RANKED, checkpoints))[0].number == 7
    assert "no checkpoint of trial 5 here" in caplog.messages[0]
    assert "of trial 1 is of 75.00%, but the study recorded 80.00%" in caplog.messages[1]


def test_without_any_the_error_is_of_the_best(
    checkpoints: CheckpointDirectory, tmp_path: Path
) -> None:
    for number in (5, 1, 7):
        damage(checkpoints, number)
    with pytest.raises(UserError, match=f"^{tmp_path / weights_name(5)}: a damaged checkpoint"):
        next(usable_trials(RANKED, checkpoints))
    elsewhere = CheckpointDirectory(Folder(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match="no checkpoint of trial 5 here; run this where"):
        next(usable_trials(RANKED, elsewhere))


def test_a_trial_took_as_long_as_all_of_its_runs() -> None:
    resumed = SMALL[2]
    assert resumed.epochs_before
    assert _training_seconds(resumed) == 20 + 30
    assert _training_seconds(SMALL[0]) == 40
    assert _training_seconds(trial(0, "complete", 0.5, epochs_before=1)) is None
    assert _training_seconds(trial(0, "complete", 0.5, begin=None, seconds=None)) is None
