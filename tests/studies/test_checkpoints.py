import os
from pathlib import Path

import pytest
import torch

from data.errors import UserError
from studies.checkpoints import Checkpoint, CheckpointDirectory, Resumable, superfluous
from studies.results import TrialRecord

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(7)}


def finished(number: int, state: str, value: float) -> TrialRecord:
    return TrialRecord(number, state, {}, (value,), value, None, None, None, None, 1.0)


def test_weights_come_back_as_they_were(tmp_path: Path) -> None:
    directory = CheckpointDirectory(tmp_path / "new")
    channels_last = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    directory.save(3, Checkpoint({**WEIGHTS, "c": channels_last}, 7, 0.1 + 0.2))
    loaded = directory.load(3)
    assert (loaded.epoch, loaded.validation_accuracy) == (7, 0.1 + 0.2)
    assert torch.equal(loaded.weights["a"], WEIGHTS["a"])
    assert torch.equal(loaded.weights["steps"], WEIGHTS["steps"])
    assert torch.equal(loaded.weights["c"], channels_last)


def test_a_better_epoch_replaces_the_earlier_one(tmp_path: Path) -> None:
    directory = CheckpointDirectory(tmp_path)
    directory.save(3, Checkpoint(WEIGHTS, 1, 0.1))
    directory.save(3, Checkpoint(WEIGHTS, 2, 0.2))
    assert directory.load(3).epoch == 2
    assert len(list(tmp_path.iterdir())) == 1


def test_an_earlier_checkpoint_survives_a_failed_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = CheckpointDirectory(tmp_path)
    directory.save(3, Checkpoint(WEIGHTS, 1, 0.1))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        directory.save(3, Checkpoint(WEIGHTS, 2, 0.2))
    assert directory.load(3).epoch == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_a_state_comes_back_as_it_was_until_it_is_removed(tmp_path: Path) -> None:
    directory = CheckpointDirectory(tmp_path / "new")
    assert directory.load_state(3) is None
    state = {"epoch": 2, "model": WEIGHTS, "groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]}
    directory.save_state(3, Resumable((0.1 + 0.2, 0.4), state))
    loaded = directory.load_state(3)
    assert loaded is not None
    assert loaded.accuracies == (0.1 + 0.2, 0.4)
    assert torch.equal(loaded.state["model"]["a"], WEIGHTS["a"])
    assert loaded.state["groups"] == state["groups"]
    directory.remove_states([3, 4])
    assert directory.load_state(3) is None


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "another"])
def test_a_damaged_state_is_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    directory = CheckpointDirectory(tmp_path)
    directory.save_state(3, Resumable((0.5,), {"model": torch.arange(1000.0)}))
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    changed = {"cut": content[:-500], "changed": content, "empty": b"", "another": b"x" * 5000}
    file.write_bytes(bytes(changed[damage]))
    assert directory.load_state(3) is None
    assert f"trial 3 begins anew: {file}: it is damaged" in caplog.text


def test_a_damaged_or_missing_checkpoint_is_named(tmp_path: Path) -> None:
    directory = CheckpointDirectory(tmp_path)
    with pytest.raises(UserError, match=r"trial-00003.safetensors: no checkpoint of trial 3"):
        directory.load(3)
    directory.save(3, Checkpoint(WEIGHTS, 1, 0.1))
    content = directory.file(3).read_bytes()
    directory.file(3).write_bytes(content[:-5])
    with pytest.raises(UserError, match="damaged"):
        directory.load(3)


def test_a_checkpoint_of_another_trial_is_not_taken_for_this_one(tmp_path: Path) -> None:
    directory = CheckpointDirectory(tmp_path)
    directory.save(3, Checkpoint(WEIGHTS, 1, 0.1))
    directory.file(3).rename(directory.file(4))
    with pytest.raises(UserError, match="it is of trial 3"):
        directory.load(4)


def test_only_the_best_complete_and_the_unfinished_are_kept() -> None:
    records = [
        finished(0, "complete", 0.5),
        finished(1, "complete", 0.9),
        finished(2, "complete", 0.7),
        finished(3, "pruned", 0.95),
        finished(4, "running", 0.1),
        finished(5, "failed", 0.99),
        finished(6, "waiting", 0.3),
    ]
    begun_since = 7
    present = {0, 1, 2, 3, 4, 5, 6, begun_since}
    assert superfluous(present, records, keep=2) == {0, 3, 5}


def test_removing_what_another_worker_removed_is_no_error(tmp_path: Path) -> None:
    directory = CheckpointDirectory(tmp_path)
    directory.save(1, Checkpoint(WEIGHTS, 1, 0.1))
    directory.remove({1, 2})
    assert directory.trial_numbers() == set()


def test_other_files_are_not_taken_for_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    (tmp_path / ".trial-00001.safetensors-abc").touch()
    assert CheckpointDirectory(tmp_path).trial_numbers() == set()
    assert CheckpointDirectory(tmp_path / "absent").trial_numbers() == set()
