"""`hpsearch run --warm-start`, with the command."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from PIL import Image
from typer.testing import Result

from data.errors import UserError
from search.warm import earlier_trials
from studies.storage import open_storage
from studies.study import open_study
from tests.conftest import invoke

Hpsearch = Callable[..., subprocess.CompletedProcess[str]]
Status = Callable[..., dict[str, Any]]

OLD = """
name = "old"
[data]
source = "photos"
[trial]
epochs = 1
[space]
learning_rate = [1e-4, 2e-3, 5e-3, 0.2]
optimizer = ["adam", "sgd"]
width = 4
[sampler]
name = "grid"
[pruner]
name = "none"
[budget]
trials = 8
"""

NEW = """
name = "new"
[data]
source = "photos"
[trial]
epochs = 1
[space]
learning_rate = { low = 1e-3, high = 0.1, log = true }
optimizer = ["adam", "adamw"]
batch_size = [32, 64]
width = 2
[budget]
trials = 5
"""


@pytest.fixture
def url(tmp_path: Path) -> str:
    for split in ("train", "test"):
        for number, name in enumerate(("cat", "dog")):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for index in range(4):
                color = (80 * number, 10 * index, 0)
                Image.new("RGB", (32, 32), color).save(folder / f"{index}.png")
    (tmp_path / "old.toml").write_text(OLD)
    (tmp_path / "new.toml").write_text(NEW)
    return f"sqlite:///{tmp_path / 'a.db'}"


def test_a_study_starts_from_the_best_of_an_earlier_one_and_then_needs_it_no_more(
    hpsearch: Hpsearch,
    status: Status,
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    run = ("--workers", 1, "--storage", url)
    first = hpsearch("run", "old.toml", *run)
    assert first.returncode == 0, first.stderr

    second = hpsearch("run", "new.toml", "--warm-start", "old.toml", *run)
    assert second.returncode == 0, second.stderr
    assert "it starts from the 3 best of study 'old'" in second.stdout
    trials = {trial["number"]: trial["parameters"] for trial in status("new", url)["top"]}
    notebook = trials[0]
    assert (notebook["learning_rate"], notebook["optimizer"]) == (1e-3, "adam")
    # The lowest rate with adam becomes the notebook's configuration, which is tried anyway.
    old = [trial["parameters"] for trial in status("old", url)["top"]]
    expected = [
        item for item in old if (item["learning_rate"], item["optimizer"]) != (1e-4, "adam")
    ]
    for number, item in enumerate(expected[:3], start=1):
        assert trials[number]["learning_rate"] == min(max(item["learning_rate"], 1e-3), 0.1)
        assert trials[number]["batch_size"] == 64
        if item["optimizer"] == "adam":
            assert trials[number]["optimizer"] == "adam"
    copied = earlier_trials(open_study("new", open_storage(url)))
    assert sorted(trial.params["learning_rate"] for trial in copied) == [2e-3, 5e-3]

    optuna.delete_study(study_name="old", storage=open_storage(url))
    shown = hpsearch("status", "new", "--storage", url)
    assert "starts from the 3 best of study 'old'" in shown.stdout
    assert status("new", url)["warm_start"] == "old"
    for options in ((), ("--warm-start", "old")):
        again = hpsearch("run", "new.toml", *options, "--trials", 6, *run)
        assert again.returncode == 0, again.stderr
        assert "continues" in again.stdout
    refused = hpsearch("run", "new.toml", "--warm-start", "quickstart", *run)
    assert refused.returncode == 2
    assert "sampler.warm_start: the study has old, given is quickstart" in refused.stderr
    result = invoke("worker", "new", "--warm-start", "quickstart", "--storage", url)
    assert "starts from the 3 best of study 'old': leave --warm-start quickstart" in said(result)


def said(result: Result) -> str:
    """In a line."""
    assert isinstance(result.exception, UserError)
    (line,) = str(result.exception).splitlines()
    return line


def test_what_cannot_be_started_from_is_said_in_one_line(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for other, why in (
        ("absent", "no study 'absent' in this storage; there: none"),
        ("new.toml", "new.toml: sampler.warm_start: a study cannot start from itself; rename it"),
        ("absent.toml", "study file 'absent.toml': No such file or directory"),
    ):
        for command in ("run", "worker"):
            result = invoke(command, "new.toml", "--warm-start", other, "--storage", url)
            assert said(result).startswith(why)
