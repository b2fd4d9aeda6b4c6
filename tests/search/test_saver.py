import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from data.files import always
from model.trial import EpochResult
from search.saver import Saver
from studies.checkpoints import CheckpointDirectory
from studies.stores import Folder


def result(weights: Mapping[str, Any], state: Mapping[str, Any] | None = None) -> EpochResult:
    return EpochResult(1, 0.5, 1.0, 1000.0, weights, state)


class Pair(NamedTuple):
    first: int
    second: int


@pytest.mark.parametrize("weights", [{"a": 0.5}, {1: torch.ones(1)}, {"a": Pair(1, 2)}])
def test_weights_that_are_none_are_warned_of_and_end_no_worker(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, weights: Mapping[str, Any]
) -> None:
    """Nor do they go unsaid when they are the last."""
    with Saver(CheckpointDirectory(Folder(tmp_path)), 3, lambda: True) as saver:
        for _ in range(2):
            saver.keep(result(weights, {"epoch": 1}), best=True, accuracies=(0.5,))
            saver.write()
    warnings = [message for message in caplog.messages if message.startswith("trial 3: the checkp")]
    assert len(warnings) == 2
    assert f"the checkpoint {tmp_path / 'trial-00003.safetensors'} cannot be written" in warnings[1]
    assert CheckpointDirectory(Folder(tmp_path)).load_state(3) is not None, "it is written still"


def test_a_state_that_cannot_be_copied_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Saver(CheckpointDirectory(Folder(tmp_path)), 3, lambda: True) as saver:
        saver.keep(result({}, {"pair": Pair(1, 2)}), best=False, accuracies=(0.5,))
        saver.write()
    (message,) = caplog.messages
    assert f"written ({tmp_path / 'trial-00003-epoch-00001.state'}: TypeError: " in message


def nobody_knows() -> bool:
    raise KeyError("owner")


@pytest.mark.parametrize(
    ("is_ours", "said"),
    [
        (lambda: False, "its last epoch is not written, since nobody knew whose it was"),
        (nobody_knows, "its state cannot be written"),
    ],
)
def test_a_last_epoch_that_may_not_be_written_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, is_ours: Callable[[], bool], said: str
) -> None:
    with Saver(CheckpointDirectory(Folder(tmp_path)), 3, is_ours) as saver:
        saver.keep(result({}, {"epoch": 1}), best=False, accuracies=(0.5,))
        saver.write()
    assert said in caplog.text


def test_what_may_not_be_written_yet_is_kept_unless_there_is_better(tmp_path: Path) -> None:
    checkpoints, ours = CheckpointDirectory(Folder(tmp_path)), [False]
    with Saver(checkpoints, 3, lambda: ours[0]) as saver:
        saver.keep(result({"a": torch.ones(1)}, {"epoch": 1}), best=True, accuracies=(0.5,))
        saver.write()
        saver.keep(result({}, {"epoch": 2}), best=False, accuracies=(0.5, 0.4))
        saver.write()
        assert saver._thread is not None
        saver._thread.join()
        assert checkpoints.store.names() == []
        ours[0] = True
        saver.write()
    assert checkpoints.load(3).epoch == 1
    assert sorted(checkpoints.store.names()) == [
        "trial-00003-epoch-00002.state",
        "trial-00003.safetensors",
    ]


@dataclass(frozen=True)
class Slow(Folder):
    """Each write waits until it may go on."""

    goes_on: threading.Event

    def write(
        self, name: str, content: bytes | memoryview, may_appear: Callable[[], bool] = always
    ) -> bool:
        assert self.goes_on.wait(60)
        return super().write(name, content, may_appear)


def test_without_time_to_wait_only_what_is_to_be_finished_is_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.saver.LAST_SECONDS", 0.3)
    slow = Slow(tmp_path, threading.Event())
    with Saver(CheckpointDirectory(slow), 3, lambda: True, lambda: False) as saver:
        for epoch in (1, 2):
            saver.keep(result({}, {"epoch": epoch}), best=False, accuracies=(0.5,) * epoch)
            saver.write()
    assert not slow.goes_on.is_set()
    assert "trial 3: its last files are not waited for any longer" in caplog.text
    assert slow.names() == []
    with saver:
        threading.Timer(0.5, slow.goes_on.set).start()
        saver.finish()
    assert sorted(slow.names()) == [f"trial-00003-epoch-0000{epoch}.state" for epoch in (1, 2)]
    assert len(caplog.messages) == 1
