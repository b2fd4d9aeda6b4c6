import io
import os
import pickle
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from data.errors import UserError
from studies.checkpoints import Checkpoint, CheckpointDirectory, Resumable, superfluous
from studies.patience import Unreachable
from studies.results import TrialRecord
from studies.stores import Folder, open_store
from tests.s3 import new_bucket, s3_server

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(7)}


def finished(number: int, state: str, value: float) -> TrialRecord:
    return TrialRecord(number, state, {}, (value,), value, None, None, None, None, 1.0)


@pytest.fixture(params=["folder", "s3"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> CheckpointDirectory:
    """In a folder that is not there yet, and in a bucket."""
    if request.param == "folder":
        return CheckpointDirectory(Folder(tmp_path / "new"))
    bucket: str = request.getfixturevalue("s3_bucket")
    return CheckpointDirectory(open_store(bucket, "flowers", to_write=True))


def test_weights_come_back_as_they_were(directory: CheckpointDirectory) -> None:
    channels_last = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    directory.save(3, Checkpoint({**WEIGHTS, "c": channels_last}, 7, 0.1 + 0.2))
    loaded = directory.load(3)
    assert (loaded.epoch, loaded.validation_accuracy) == (7, 0.1 + 0.2)
    assert torch.equal(loaded.weights["a"], WEIGHTS["a"])
    assert torch.equal(loaded.weights["steps"], WEIGHTS["steps"])
    assert torch.equal(loaded.weights["c"], channels_last)


def test_a_better_epoch_replaces_the_earlier_one(directory: CheckpointDirectory) -> None:
    directory.save(3, Checkpoint(WEIGHTS, 1, 0.1))
    directory.save(3, Checkpoint(WEIGHTS, 2, 0.2))
    assert directory.load(3).epoch == 2
    assert directory.store.names() == ["trial-00003.safetensors"]


def test_an_earlier_checkpoint_survives_a_failed_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = CheckpointDirectory(Folder(tmp_path))
    directory.save(3, Checkpoint(WEIGHTS, 1, 0.1))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        directory.save(3, Checkpoint(WEIGHTS, 2, 0.2))
    assert directory.load(3).epoch == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_a_state_comes_back_as_it_was(directory: CheckpointDirectory) -> None:
    assert directory.load_state(3) is None
    state = {"epoch": 2, "model": WEIGHTS, "groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]}
    directory.save_state(3, Resumable((0.1 + 0.2, 0.4), state))
    loaded = directory.load_state(3)
    assert loaded is not None
    assert loaded.accuracies == (0.1 + 0.2, 0.4)
    assert torch.equal(loaded.state["model"]["a"], WEIGHTS["a"])
    assert loaded.state["groups"] == state["groups"]
    assert directory.load_state(4) is None


def save_states(directory: CheckpointDirectory, trial: int, *epochs: int) -> None:
    for epoch in epochs:
        directory.save_state(trial, Resumable((0.5,) * epoch, {"model": torch.arange(1000.0)}))


def test_of_the_states_the_newest_and_the_one_before_are_kept(
    directory: CheckpointDirectory,
) -> None:
    save_states(directory, 3, 1, 2, 3, 4)
    save_states(directory, 4, 1)
    assert sorted(directory.store.names()) == [
        "trial-00003-epoch-00003.state",
        "trial-00003-epoch-00004.state",
        "trial-00004-epoch-00001.state",
    ]


def test_states_of_an_attempt_that_was_begun_anew_go(directory: CheckpointDirectory) -> None:
    save_states(directory, 3, 7, 8, 1)
    assert directory.store.names() == ["trial-00003-epoch-00001.state"]
    loaded = directory.load_state(3)
    assert loaded is not None
    assert len(loaded.accuracies) == 1


def test_states_that_its_new_worker_adds_while_a_late_one_is_written_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints, save = CheckpointDirectory(Folder(tmp_path)), torch.save

    def late(what: object, file: io.BytesIO) -> None:
        monkeypatch.undo()
        save_states(checkpoints, 3, 3, 4)
        save(what, file)

    save_states(checkpoints, 3, 1)
    monkeypatch.setattr(torch, "save", late)
    save_states(checkpoints, 3, 2)
    loaded = CheckpointDirectory(Folder(tmp_path)).load_state(3)
    assert loaded is not None
    assert len(loaded.accuracies) == 4


@dataclass(frozen=True)
class Stale(Folder):
    """On NFS, as a machine sees it that has listed it a while ago."""

    listed: list[str]

    def names(self) -> list[str]:
        return self.listed


@pytest.mark.parametrize("listed", [[], ["trial-00003-epoch-00002.state"]])
@pytest.mark.parametrize(("reported", "found"), [(7, 7), (8, 7), (9, 7), (10, 2), (0, 2)])
def test_a_state_that_is_not_listed_yet_is_found_by_what_was_reported(
    tmp_path: Path, listed: list[str], reported: int, found: int
) -> None:
    save_states(CheckpointDirectory(Folder(tmp_path)), 3, 2, 7)
    loaded = CheckpointDirectory(Stale(tmp_path, listed)).load_state(3, reported=reported)
    if found == 2 and not listed:
        assert loaded is None
    else:
        assert loaded
        assert len(loaded.accuracies) == found


def flipped(content: bytes, place: int) -> bytes:
    changed = bytearray(content)
    changed[place] ^= 1
    return bytes(changed)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[:-500],
    "cut early": lambda content: content[:20],
    "empty": lambda _: b"",
    "another": lambda _: b"x" * 5000,
    "longer": lambda content: content + b"x",
    "zeros": lambda content: bytes(len(content)),
    "first bit": lambda content: flipped(content, 0),
    "eleventh byte": lambda content: flipped(content, 10),
    "middle": lambda content: flipped(content, len(content) // 2),
    "last": lambda content: flipped(content, -1),
}
each_damage = pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())


def spoil(directory: CheckpointDirectory, name: str, damage: Callable[[bytes], bytes]) -> None:
    directory.store.write(name, damage(directory.store.read(name)))


@each_damage
def test_of_a_damaged_state_the_one_before_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[bytes], bytes]
) -> None:
    directory = CheckpointDirectory(Folder(tmp_path))
    save_states(directory, 3, 1, 2, 3)
    newest, before = "trial-00003-epoch-00003.state", "trial-00003-epoch-00002.state"
    spoil(directory, newest, damage)
    loaded = directory.load_state(3)
    assert loaded is not None
    assert len(loaded.accuracies) == 2
    assert caplog.messages == [
        f"trial 3: its state after epoch 3 cannot be used: {tmp_path / newest}: its digest does "
        "not fit"
    ]
    caplog.clear()
    spoil(directory, before, damage)
    assert directory.load_state(3) is None
    assert len(caplog.messages) == 3
    assert caplog.messages[-1] == "trial 3 begins anew: no state of it can be used"
    save_states(directory, 3, 1)
    assert directory.store.names() == ["trial-00003-epoch-00001.state"]


def test_a_damaged_state_in_s3_is_found_as_well(s3_bucket: str) -> None:
    directory = CheckpointDirectory(open_store(s3_bucket, "flowers", to_write=True))
    save_states(directory, 3, 1, 2)
    spoil(directory, "trial-00003-epoch-00002.state", DAMAGES["middle"])
    loaded = directory.load_state(3)
    assert loaded is not None
    assert len(loaded.accuracies) == 1


@pytest.mark.parametrize("name", ["trial-00004-epoch-00002.state", "trial-00003-epoch-00001.state"])
def test_a_state_of_another_trial_or_epoch_is_not_taken_for_this_one(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    directory = CheckpointDirectory(Folder(tmp_path))
    save_states(directory, 3, 2)
    (tmp_path / "trial-00003-epoch-00002.state").rename(tmp_path / name)
    assert directory.load_state(int(name[6:11])) is None
    assert "it is of trial 3, epoch 2" in caplog.text


@each_damage
def test_damaged_weights_are_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    directory = CheckpointDirectory(Folder(tmp_path))
    directory.save(3, Checkpoint({**WEIGHTS, "b": torch.arange(1000.0)}, 1, 0.1))
    assert directory.accuracy_of(3, 0.1) == 0.1
    spoil(directory, "trial-00003.safetensors", damage)
    with pytest.raises(UserError, match=r"trial-00003.safetensors: a damaged checkpoint \(its"):
        directory.load(3)
    assert directory.accuracy_of(3, 0.1) == -1


def test_no_changed_bit_of_a_checkpoint_goes_unnoticed(tmp_path: Path) -> None:
    directory = CheckpointDirectory(Folder(tmp_path))
    directory.save(3, Checkpoint(WEIGHTS, 1, 0.1))
    content = directory.store.read("trial-00003.safetensors")
    for place in range(len(content)):
        directory.store.write("trial-00003.safetensors", flipped(content, place))
        with pytest.raises(UserError, match="damaged"):
            directory.load(3)


@pytest.mark.parametrize("place", ["folder", "s3"])
def test_what_is_out_of_reach_is_neither_missing_nor_damaged(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a trial of many epochs; it must not begin anew."""
    with ExitStack() as stack:
        if place == "folder":
            directory = CheckpointDirectory(Folder(tmp_path / "loop"))
            (tmp_path / "loop").symlink_to("loop")
            reason = f"{tmp_path / 'loop'}.*: Too many levels of symbolic links"
        else:
            process, url = stack.enter_context(s3_server())
            bucket = new_bucket(url, monkeypatch)
            directory = CheckpointDirectory(open_store(bucket, "flowers", to_write=True))
            process.kill()
            process.wait()
            reason = f"{bucket}/flowers/.*: Could not connect"
        with pytest.raises(Unreachable, match=reason):
            directory.load_state(3)
        with pytest.raises(Unreachable, match=reason):
            directory.accuracy_of(3, 0.5)


def test_a_state_that_the_disk_does_not_give_is_stepped_over_only_when_it_is_given_up(
    tmp_path: Path,
) -> None:
    directory = CheckpointDirectory(Folder(tmp_path))
    save_states(directory, 3, 1, 2)
    newest = tmp_path / "trial-00003-epoch-00002.state"
    newest.unlink()
    newest.symlink_to(newest.name)
    with pytest.raises(Unreachable, match=f"{newest}: "):
        directory.load_state(3)
    older = directory.load_state(3, give_up=True)
    assert older
    assert len(older.accuracies) == 1


class Harmful:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_no_code_in_a_state_is_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As somebody who can write to the folder may leave it, with a digest that is right."""
    directory, run = CheckpointDirectory(Folder(tmp_path / "new")), tmp_path / "run"
    directory.save_state(3, Resumable((0.5,), {}))
    for zipped in (True, False):
        content = io.BytesIO()
        harmful = {"trial": 3, "accuracies": (0.5,), "state": Harmful(run)}
        torch.save(harmful, content, _use_new_zipfile_serialization=zipped)
        state = content.getvalue()
        directory.store.write("trial-00003-epoch-00001.state", sha256(state).digest() + state)
        assert directory.load_state(3) is None
        assert "Weights only load failed" in caplog.text
        caplog.clear()
    assert not run.exists()
    pickle.loads(pickle.dumps(Harmful(run)))
    assert run.exists(), "it would have"


def test_a_missing_checkpoint_is_named(directory: CheckpointDirectory) -> None:
    with pytest.raises(UserError, match=r"trial-00003.safetensors: no checkpoint of trial 3"):
        directory.load(3)


def test_a_checkpoint_of_another_trial_is_not_taken_for_this_one(tmp_path: Path) -> None:
    directory = CheckpointDirectory(Folder(tmp_path))
    directory.save(3, Checkpoint(WEIGHTS, 1, 0.1))
    (tmp_path / "trial-00003.safetensors").rename(tmp_path / "trial-00004.safetensors")
    with pytest.raises(UserError, match="it is of trial 3"):
        directory.load(4)


RECORDS = [
    finished(0, "complete", 0.5),
    finished(1, "complete", 0.9),
    finished(2, "complete", 0.7),
    finished(3, "pruned", 0.95),
    finished(4, "running", 0.1),
    finished(5, "failed", 0.99),
    finished(6, "waiting", 0.3),
]


def outlines(_: set[int]) -> list[TrialRecord]:
    return RECORDS


def test_only_the_weights_of_the_best_complete_and_of_the_unfinished_are_kept() -> None:
    begun_since = 7
    present = {number: f"trial-0000{number}.safetensors" for number in range(begun_since + 1)}
    assert superfluous(present.values(), outlines, keep=2) == [present[0], present[3], present[5]]


def test_states_and_left_overs_are_kept_until_their_trial_has_ended() -> None:
    def of(number: int) -> list[str]:
        return [
            f"trial-0000{number}-epoch-00002.state",
            f".trial-0000{number}-epoch-00003.state-a_b1",
            f".trial-0000{number}.safetensors-x",
        ]

    names = [name for number in (1, 4, 6, 7) for name in of(number)]
    assert superfluous(names, outlines, keep=2) == of(1)


def test_what_is_not_ours_stays() -> None:
    names = ["notes.txt", "trial-00003.safetensors.bak", "my-trial-00003.state", "trial-3.pt"]
    assert superfluous(names, outlines, keep=1) == []


def test_tidying_removes_what_is_of_no_more_use(directory: CheckpointDirectory) -> None:
    for number in (0, 1, 4):
        directory.save(number, Checkpoint(WEIGHTS, 1, 0.1))
        save_states(directory, number, 1)
    for _ in range(2):
        directory.tidy(outlines, keep=1)
    assert directory.trial_numbers() == {1, 4}
    assert sorted(directory.store.names()) == [
        "trial-00001.safetensors",
        "trial-00004-epoch-00001.state",
        "trial-00004.safetensors",
    ]
