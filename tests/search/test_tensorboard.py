import json
import logging
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from urllib.request import Request, urlopen

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data.dataset import load_dataset
from data.split import split_for_training
from model.train import train
from model.trial import EpochResult, TrialContext
from search.tensorboard import TrialLog, augmented_batch

PARAMETERS = {
    "width": 4,
    "batch_size": 32,
    "learning_rate": 0.01,
    "schedule": "one-cycle",
    "augmentation": "alternating-flip",
    "stem": "whitening",
}


@pytest.fixture
def context(few_images: Path, tmp_path: Path) -> TrialContext:
    data = split_for_training(load_dataset(str(few_images), tmp_path), 0.5, 0)
    return TrialContext(data, torch.device("cpu"), 2, seed=0, precision="fp32")


def logged(log: TrialLog, context: TrialContext) -> list[EpochResult]:
    log.begin(context, 0)
    results = []
    for result in train(PARAMETERS, context):
        log.epoch(result)
        results.append(replace(result, weights={}, state=None))
    log.end(max(result.validation_accuracy for result in results))
    return results


def read(directory: Path) -> EventAccumulator:
    found = EventAccumulator(str(directory))
    found.Reload()
    return found


def test_a_trial_s_curves_its_graph_its_images_and_parameters_are_there(
    context: TrialContext, tmp_path: Path
) -> None:
    results = logged(TrialLog(tmp_path / "tb", 7, PARAMETERS, is_resnet=True), context)
    found = read(tmp_path / "tb" / "trial-0007")
    for tag, expected in (
        ("loss/training", [result.training_loss for result in results]),
        ("accuracy/validation", [result.validation_accuracy for result in results]),
        ("images_per_second", [result.images_per_second for result in results]),
        # A triangle with its peak at a quarter: two thirds of it after half of the steps.
        ("learning_rate", [0.01 * (1 - 0.5) / (1 - 0.25), 0.0]),
    ):
        events = found.Scalars(tag)
        assert [event.step for event in events] == [1, 2]
        assert [event.value for event in events] == pytest.approx(expected, rel=1e-5), tag
    (best,) = found.Scalars("accuracy/best")
    assert best.value == pytest.approx(max(result.validation_accuracy for result in results))
    assert len(found.Images("augmented batch")) == 1
    operations = {node.op for node in found.Graph().node}
    assert "aten::_convolution" in operations
    parameters = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    for name in PARAMETERS:
        assert name.encode() in parameters


def test_the_hparams_page_that_tensorboard_serves_has_the_trial(tmp_path: Path) -> None:
    log = TrialLog(tmp_path, 3, {"x": 0.25}, is_resnet=False)
    log.begin(cast(TrialContext, None), 0)  # Which is for the pictures of a ResNet's trial.
    log.epoch(EpochResult(1, 0.5, 1.0, 100.0, {}))
    log.end(0.5)
    command = (Path(sys.executable).with_name("tensorboard"), "--logdir", tmp_path, "--port", "0")
    asked = {"sliceSize": 10, "allowedStatuses": ["STATUS_SUCCESS"]}
    groups: list[Any] = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            said = (re.search(r"at (http://\S+/) ", line) for line in server.stderr)
            address = next(match[1] for match in said if match)
            question = Request(
                f"{address}data/plugin/hparams/session_groups",
                json.dumps(asked).encode(),
                {"Content-Type": "application/json"},
            )
            latest = time.monotonic() + 20
            while not groups and time.monotonic() < latest:
                time.sleep(0.1)
                with urlopen(question, timeout=30) as answer:
                    groups = json.load(answer).get("sessionGroups", [])
        finally:
            server.terminate()
    (group,) = groups
    assert group["hparams"] == {"x": 0.25}
    (values,) = [item["value"] for item in group["metricValues"]]
    assert values == 0.5


def test_the_pictured_images_are_augmented_as_in_the_first_epoch(context: TrialContext) -> None:
    batch = augmented_batch(PARAMETERS, context)
    plain = context.data.train.images[:64].float() / 255
    mirrored = [torch.equal(image, one.flip(2)) for image, one in zip(batch, plain, strict=True)]
    same = [torch.equal(image, one) for image, one in zip(batch, plain, strict=True)]
    assert all(a or b for a, b in zip(mirrored, same, strict=True))
    assert 10 < sum(mirrored) < 54


def test_what_cannot_be_written_is_said_once_and_costs_the_trial_nothing(
    context: TrialContext, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING, "search.tensorboard"):
        assert len(logged(TrialLog(tmp_path / "file", 0, PARAMETERS, True), context)) == 2
    (record,) = caplog.records
    assert "trial 0: TensorBoard has nothing more in" in record.getMessage()


def test_a_picture_that_fails_is_said_and_costs_no_curves(
    context: TrialContext,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError("none left")

    monkeypatch.setattr("search.tensorboard.augmented_batch", no_memory)
    with caplog.at_level(logging.WARNING, "search.tensorboard"):
        logged(TrialLog(tmp_path, 0, PARAMETERS, True), context)
    (record,) = caplog.records
    assert record.getMessage() == "trial 0: TensorBoard has no picture (none left)"
    assert len(read(tmp_path / "trial-0000").Scalars("accuracy/validation")) == 2


def test_a_resumed_trial_hides_what_was_written_after_its_last_whole_epoch(
    context: TrialContext, tmp_path: Path
) -> None:
    def epoch(number: int, accuracy: float) -> EpochResult:
        return EpochResult(number, accuracy, 1.0, 100.0, {})

    first = TrialLog(tmp_path, 0, {"x": 1}, is_resnet=False)
    first.begin(context, 0)
    for number, accuracy in ((1, 0.1), (2, 0.2)):
        first.epoch(epoch(number, accuracy))
    second = TrialLog(tmp_path, 0, {"x": 1}, is_resnet=False)
    second.begin(context, 1)
    second.epoch(epoch(2, 0.3))
    second.end(0.3)
    events = read(tmp_path / "trial-0000").Scalars("accuracy/validation")
    assert [(event.step, round(event.value, 3)) for event in events] == [(1, 0.1), (2, 0.3)]


def test_nothing_is_written_unless_it_was_asked_for(context: TrialContext, tmp_path: Path) -> None:
    logged(TrialLog(None, 0, PARAMETERS, is_resnet=True), context)
    assert not list(tmp_path.rglob("*tfevents*"))
