import json
import os
import subprocess
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn

import pytest

from data.errors import UserError
from data.files import write_whole
from data.sums import check_sums
from studies import export
from studies.export import (
    Model,
    add_evaluation,
    check_output,
    is_evaluation_of,
    replaced_by_export,
    several_name,
    with_evaluation,
    write_export,
    write_exports,
)

WEIGHTS = b"weights"
DESCRIPTION: dict[str, Any] = {
    "study": "flowers",
    "trial": 7,
    "parameters": {"learning_rate": 0.01, "optimizer": "sgd"},
    "validation_accuracy": 0.75,
    "validation_accuracy_per_epoch": [0.5, 0.75],
    "best_epoch": 2,
    "test_accuracy": 0.7,
    "test_accuracy_with_flips": 0.72,
    "data": {"source": "photos", "classes": ["rose", "tulip"]},
}

EVALUATION: dict[str, Any] = {
    "weights": sha256(WEIGHTS).hexdigest(),
    "macro": {"f1": 0.5},
    "calibration": {"error": 0.05},
    "mean_accuracy_corrupted": 0.4,
}


def model(trial: int = 7, graph: bytes | None = None) -> Model:
    graphs = {} if graph is None else {"model.onnx": graph}
    return Model({"model.safetensors": WEIGHTS, **graphs}, {**DESCRIPTION, "trial": trial})


def trial_in(folder: Path) -> Any:
    return json.loads((folder / "trial.json").read_text())["trial"]


def test_an_export_holds_weights_description_and_text(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "best"
    write_export(output, model(graph=b"graph"))
    assert (output / "model.safetensors").read_bytes() == WEIGHTS
    assert (output / "model.onnx").read_bytes() == b"graph"
    assert json.loads((output / "trial.json").read_text()) == DESCRIPTION
    assert "75.00%" in (output / "README.md").read_text()
    assert [item.name for item in output.parent.iterdir()] == ["best"]
    check_sums(output, frozenset({"model.safetensors", "model.onnx", "trial.json", "README.md"}))


def test_an_earlier_export_is_replaced(tmp_path: Path) -> None:
    write_export(tmp_path / "best", model(7, b"graph"))
    write_export(tmp_path / "best", model(8))
    assert trial_in(tmp_path / "best") == 8
    assert not (tmp_path / "best" / "model.onnx").exists(), "it was of the other model"
    assert [item.name for item in tmp_path.iterdir()] == ["best"]


def test_what_would_be_replaced_is_said(tmp_path: Path) -> None:
    output = tmp_path / "best"
    assert replaced_by_export(output) is None
    write_export(output, model(7))
    assert replaced_by_export(output) == "the model of trial 7 of study 'flowers'"
    (output / "trial.json").write_text("[]")
    assert replaced_by_export(output) == "a model whose trial.json cannot be read"
    write_exports(output, {several_name(place, 2, 4 - place): model() for place in (1, 2)})
    assert replaced_by_export(output) == "2 models"
    (tmp_path / "empty").mkdir()
    assert replaced_by_export(tmp_path / "empty") is None


def test_a_folder_with_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="not an exported model"):
        write_export(tmp_path, model())
    assert [item.name for item in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_failed_export_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_export(tmp_path / "best", model(7, b"graph"))

    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "_sync", full)
    with pytest.raises(UserError, match="No space left"):
        write_export(tmp_path / "best", model(8))
    assert trial_in(tmp_path / "best") == 7
    assert [item.name for item in tmp_path.iterdir()] == ["best"]


@pytest.mark.parametrize("before", ["_sync", "rename"])
def test_ctrl_c_leaves_the_earlier_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    write_export(tmp_path / "best", model(7, b"graph"))
    rename = Path.rename

    def interrupted(path: Path, *_: Path) -> None:
        raise KeyboardInterrupt

    def interrupted_in_place(path: Path, target: Path) -> Path:
        # When the old one has made room for the new one, that is, at the worst moment.
        if target == tmp_path / "best" and not path.name == "export":
            raise KeyboardInterrupt
        return rename(path, target)

    if before == "_sync":
        monkeypatch.setattr(export, "_sync", interrupted)
    else:
        monkeypatch.setattr(Path, "rename", interrupted_in_place)
    with pytest.raises(KeyboardInterrupt):
        write_export(tmp_path / "best", model(8))
    assert trial_in(tmp_path / "best") == 7
    check_sums(tmp_path / "best", frozenset({"model.onnx"}))
    assert [item.name for item in tmp_path.iterdir()] == ["best"]


class Killed(BaseException):
    """As SIGKILL: nothing that comes after it is done."""


def killed(*_: object, **__: object) -> NoReturn:
    raise Killed


def test_what_a_killed_export_has_moved_aside_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, rename = tmp_path / "best-old-2", Path.rename
    write_export(output, model(7, b"graph"))

    def killed_in_place(path: Path, target: Path) -> Path:
        return killed() if target == output else rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed_in_place)
        patched.setattr("studies.export.shutil.rmtree", killed)
        with pytest.raises(Killed):
            write_export(output, model(8))
    assert not output.exists()
    check_output(output)
    assert not output.exists(), "another process may be at it"
    (aside,) = tmp_path.glob(".best-old-2-old-*")
    os.utime(aside, (0, 0))
    check_output(tmp_path / "best")
    assert not (tmp_path / "best").exists(), "it is of another name"
    check_output(output)
    assert trial_in(output) == 7
    check_sums(output, frozenset({"model.onnx"}))
    assert list(tmp_path.glob(".best-old-2-old-*")) == []


def test_the_names_are_on_the_disk_before_the_earlier_export_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(export, "_sync", synced.append)
    write_export(tmp_path / "best", model(7))
    assert synced[-1] == tmp_path
    assert synced[-2].parent == tmp_path, "and those in the folder before it is in its place"
    monkeypatch.setattr("studies.export.shutil.rmtree", killed)
    synced.clear()
    with pytest.raises(Killed):
        write_export(tmp_path / "best", model(8))
    assert synced[-1] == tmp_path


def test_several_models_are_written_and_replaced_together(tmp_path: Path) -> None:
    output = tmp_path / "five"
    write_exports(output, {several_name(place, 2, 4 - place): model() for place in (1, 2)})
    assert sorted(item.name for item in output.iterdir()) == ["1-trial-3", "2-trial-2"]
    check_sums(output / "2-trial-2", frozenset({"trial.json"}))
    assert "hpsearch predict 2-trial-2" in (output / "2-trial-2" / "README.md").read_text()
    write_exports(output, {several_name(1, 10, 9): model(9)})
    assert [item.name for item in output.iterdir()] == ["01-trial-9"]
    write_export(output, model(8))
    assert trial_in(output) == 8

    write_exports(output, {"1-trial-7": model(7)})
    (output / "1-trial-7" / "notes.txt").write_text("precious")
    with pytest.raises(UserError, match="not an exported model"):
        write_exports(output, {"1-trial-8": model(8)})
    assert (output / "1-trial-7" / "notes.txt").exists()


def test_a_place_that_cannot_be_written_is_named_beforehand(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is not a folder that can be written to"):
        check_output(tmp_path / "file" / "best")
    check_output(tmp_path / "new" / "folder" / "best")
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("kept", "shown"),
    [
        ({}, True),
        ({"weights": sha256(b"others").hexdigest()}, False),
        ({"macro": None}, False),
        ({"macro": {"f1": 10**400}}, False),
        ({"mean_accuracy_corrupted": "0.4"}, False),
    ],
)
def test_an_evaluation_is_shown_with_the_weights_that_it_is_of(
    tmp_path: Path, kept: dict[str, Any], shown: bool
) -> None:
    figures = {**EVALUATION, **kept}
    (tmp_path / "evaluation.json").write_text(json.dumps({"models": [figures]}))
    write_export(tmp_path / "best", with_evaluation(model(), tmp_path / "evaluation.json"))
    assert ("| 50.00% |" in (tmp_path / "best" / "README.md").read_text()) is shown
    same = figures["weights"] == EVALUATION["weights"]
    assert is_evaluation_of(tmp_path / "best", figures) is same
    assert not is_evaluation_of(tmp_path / "none", figures)


@pytest.mark.parametrize(
    "damaged", [None, "x", "[]", '{"models": null}', '{"models": [1]}', "{}", "[" * 100_000]
)
def test_a_damaged_evaluation_is_left_out(tmp_path: Path, damaged: str | None) -> None:
    if damaged is not None:
        (tmp_path / "evaluation.json").write_text(damaged)
    assert with_evaluation(model(), tmp_path / "evaluation.json") == model()


def test_an_evaluation_goes_into_the_card_of_the_folder_unless_somebody_has_edited_it(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "best"
    write_export(folder, model())
    for f1 in (0.5, 0.66):
        evaluation = {**EVALUATION, "macro": {"f1": f1}}
        assert add_evaluation(folder, evaluation)
        assert f"| {f1:.2%} |" in (folder / "README.md").read_text()
        command = ("sha256sum", "--check", "--strict", "SHA256SUMS")
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    (folder / "README.md").write_text("# Mine\n")
    assert not add_evaluation(folder, evaluation)
    assert (folder / "README.md").read_text() == "# Mine\n"
    check_output(folder)


def test_a_card_whose_digest_alone_was_written_has_not_been_edited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "best"
    write_export(folder, model())

    def killed_between(path: Path, content: bytes) -> None:
        if path.name == "README.md":
            raise Killed
        write_whole(path, content)

    with monkeypatch.context() as patched:
        patched.setattr("studies.export.write_whole", killed_between)
        with pytest.raises(Killed):
            add_evaluation(folder, EVALUATION)
    assert "| 50.00% |" not in (folder / "README.md").read_text()
    # By another machine.
    assert add_evaluation(folder, {**EVALUATION, "macro": {"f1": 0.51}})
    assert "| 51.00% |" in (folder / "README.md").read_text()
    command = ("sha256sum", "--check", "--strict", "SHA256SUMS")
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
