import io
import json
from pathlib import Path

import pytest
from bottle import HTTPError
from optuna.trial import create_trial
from optuna_dashboard.artifact._backend import list_study_artifacts, list_trial_artifacts

from studies.artifacts import StudyFiles, file_id, study_rows, trial_rows
from studies.config import load_study_file
from studies.storage import open_storage
from studies.study import OpenedStudy, create_or_continue


@pytest.fixture
def opened(tmp_path: Path) -> OpenedStudy:
    storage = open_storage(f"sqlite:///{tmp_path / 'a.db'}", create=True)
    opened, _ = create_or_continue(storage, load_study_file("quickstart"), "00", enqueued=[])
    folder = opened.directory(tmp_path / "var")
    for name in ("checkpoints", "best", "evaluation"):
        (folder / name).mkdir(parents=True)
    (folder / "checkpoints" / "trial-00003.safetensors").write_bytes(b"weights")
    (folder / "checkpoints" / "trial-00003-epoch-00001.state").write_bytes(b"a pickle")
    (folder / "best" / "README.md").write_bytes(b"a card")
    (folder / "best" / "private").write_bytes(b"not for all")
    (folder / "evaluation" / "mistakes.png").write_bytes(b"a picture")
    (folder / "evaluation" / "model.onnx").write_bytes(b"none of an evaluation")
    (tmp_path / "outside").write_bytes(b"not for anybody")
    return opened


def test_weights_and_the_exported_model_are_read_and_nothing_else(
    opened: OpenedStudy, tmp_path: Path
) -> None:
    files = StudyFiles(opened.storage, tmp_path / "var", None)

    def read(name: str) -> bytes:
        return files.open_reader(file_id(opened.identity, name)).read()

    assert read("trial-00003.safetensors") == b"weights"
    assert read("README.md") == b"a card"
    assert read("mistakes.png") == b"a picture"
    for name in (
        *("trial-00003-epoch-00001.state", "private", "model.onnx", "../../outside", "trial.json"),
        str(tmp_path / "outside"),
    ):
        with pytest.raises(HTTPError):
            read(name)
    for strange in ("../../outside", "", "/etc/passwd", "0" * 8 + "-" + "0" * 16, "..", "1"):
        with pytest.raises(HTTPError):
            files.open_reader(strange)
    with pytest.raises(HTTPError):
        files.write(file_id(opened.identity, "README.md"), io.BytesIO(b"another"))
    assert read("README.md") == b"a card"
    confirmed = opened.directory(tmp_path / "var") / "confirmed"
    confirmed.mkdir()
    (confirmed / "README.md").write_bytes(b"of the confirmed model")
    assert read("README.md") == b"of the confirmed model"


def test_deleting_a_study_in_the_dashboard_leaves_its_files_and_others(
    opened: OpenedStudy, tmp_path: Path
) -> None:
    outside = json.dumps({"artifact_id": "../../outside", "filename": "x"})
    opened.storage.set_study_system_attr(1, "artifacts:../../outside", outside)
    files = StudyFiles(opened.storage, tmp_path / "var", None)
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    files.remove("../../outside")
    files.remove(file_id(opened.identity, "README.md"))
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before


def test_what_is_not_there_any_more_is_not_offered(opened: OpenedStudy) -> None:
    study = opened.study
    study.add_trials([create_trial(value=0.5), create_trial(value=0.6)])

    def offered(weights: dict[int, str]) -> list[list[str]]:
        rows = trial_rows(opened, weights, opened.storage.get_study_system_attrs(1))
        for key, value in {**rows, **study_rows(opened, ["README.md"])}.items():
            opened.storage.set_study_system_attr(1, key, value)
        stored = opened.storage.get_study_system_attrs(1)
        assert [item["filename"] for item in list_study_artifacts(stored)] == ["README.md"]
        return [
            [item["filename"] for item in list_trial_artifacts(stored, {}, trial)]
            for trial in study.trials
        ]

    first, second = "trial-00000.safetensors", "trial-00001.safetensors"
    assert offered({1: first}) == [[first], []]
    assert offered({2: second}) == [[], [second]]
    assert trial_rows(opened, {2: second}, opened.storage.get_study_system_attrs(1)) == {}
