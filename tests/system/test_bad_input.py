"""What a user may get wrong: each is one line on stderr, exit code 2, and no traceback."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from search.prepare import create_from_file
from studies.config import load_study_file
from studies.storage import open_storage

Hpsearch = Callable[..., subprocess.CompletedProcess[str]]


def assert_one_line(result: subprocess.CompletedProcess[str], said: str, code: int = 2) -> None:
    assert result.returncode == code, result.stderr
    lines = [line for line in result.stderr.splitlines() if not line[:2].isdigit()]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("hpsearch: ")
    assert said in lines[0]
    assert "Traceback" not in result.stderr


def images(folder: Path, *classes: str) -> Path:
    for number, name in enumerate(classes):
        for split, count in (("train", 4), ("test", 2)):
            directory = folder / split / name
            directory.mkdir(parents=True)
            for index in range(count):
                color = (80 * number, 10 * index, 0)
                Image.new("RGB", (40, 30), color).save(directory / f"{index}.jpg")
    return folder


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("sampler.nmae=gp", "sampler.nmae: unknown key; known here are name"),
        ("space.learning_rate={ low = 0.1, high = 0.01 }", "space.learning_rate: low (0.1) must"),
        ("space.optimizer=adamm", "space.optimizer: optimizer must be one of"),
        ("trial.objective=no.such:thing", "'no.such:thing': cannot be imported"),
        ("no assignment", "write key=value"),
    ],
)
def test_a_wrong_setting_is_named(hpsearch: Hpsearch, setting: str, said: str) -> None:
    assert_one_line(hpsearch("run", "quickstart", "--set", setting), said)


def test_a_missing_study_file_is_named(hpsearch: Hpsearch) -> None:
    assert_one_line(hpsearch("run", "absent.toml"), "'absent.toml': No such file")


def test_a_missing_folder_is_named(hpsearch: Hpsearch) -> None:
    assert_one_line(hpsearch("run", "quickstart", "--data", "absent"), "'absent': no such folder")


def test_a_folder_with_one_class_is_refused(hpsearch: Hpsearch, tmp_path: Path) -> None:
    images(tmp_path / "photos", "cat")
    assert_one_line(hpsearch("run", "quickstart", "--data", "photos"), "only 'cat'")


def test_a_truncated_image_is_named(hpsearch: Hpsearch, tmp_path: Path) -> None:
    images(tmp_path / "photos", "cat", "dog")
    broken = tmp_path / "photos" / "train" / "dog" / "2.jpg"
    broken.write_bytes(broken.read_bytes()[:-200])
    assert_one_line(hpsearch("run", "quickstart", "--data", "photos"), "train/dog/2.jpg")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql+psycopg://me:secret@127.0.0.1:1/x", "cannot be opened"),
        ("nonsense", "not a database URL"),
        ("sqlite:////no/such/folder/a.db", "unable to open database file"),
    ],
)
def test_a_storage_that_cannot_be_reached_is_named(hpsearch: Hpsearch, url: str, said: str) -> None:
    result = hpsearch("run", "quickstart", HPSEARCH_STORAGE=url)
    assert_one_line(result, said)
    assert "secret" not in result.stderr


@pytest.mark.parametrize("command", [["status"], ["dashboard"], ["worker", "mine"]])
def test_looking_at_a_database_that_does_not_exist_says_how_to_make_one(
    hpsearch: Hpsearch, tmp_path: Path, command: list[str]
) -> None:
    assert_one_line(hpsearch(*command), "no such file yet; hpsearch run makes it")
    assert not (tmp_path / "hpsearch.db").exists()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("run", "'nosuch' is no study file (FILE.toml); "),
        ("evaluate", "'nosuch' is no folder here; "),
    ],
)
def test_a_name_that_is_nothing_is_said_to_be_so(
    hpsearch: Hpsearch, command: str, said: str
) -> None:
    assert_one_line(hpsearch(command, "nosuch"), said)


@pytest.fixture
def prepared(tmp_path: Path, data_cache: Path) -> None:
    """A study in which no trial has finished."""
    storage = open_storage(f"sqlite:///{tmp_path / 'hpsearch.db'}", create=True)
    config = load_study_file("quickstart", {"space.width": 4, "trial.epochs": 1})
    create_from_file(storage, config, "quickstart", data_cache)


def test_a_search_in_which_no_trial_has_finished_says_so(
    hpsearch: Hpsearch, few_images: Path
) -> None:
    """Its worker finds the time up at once."""
    arguments = ("run", "quickstart", "--workers", 1, "--minutes", 1e-6, "--data", few_images)
    result = hpsearch(*arguments)
    assert result.returncode == 1
    assert "no trial is complete" in result.stdout


@pytest.mark.usefixtures("prepared")
def test_an_unknown_study_says_which_there_are(hpsearch: Hpsearch) -> None:
    for command in (
        ["status", "x"],
        ["run", "x"],
        ["worker", "x"],
        ["export", "x", "--output", "best"],
    ):
        assert_one_line(hpsearch(*command), "no study 'x' in this storage; there: quickstart")


@pytest.mark.usefixtures("prepared")
def test_an_export_before_any_trial_has_finished_says_so(hpsearch: Hpsearch) -> None:
    result = hpsearch("export", "quickstart", "--output", "best")
    assert_one_line(result, "no trial is complete yet")


@pytest.mark.usefixtures("prepared")
def test_a_study_file_that_contradicts_the_study_is_refused_with_the_difference(
    hpsearch: Hpsearch,
) -> None:
    result = hpsearch("run", "quickstart", "--set", "space.width=4", "--set", "trial.epochs=2")
    assert_one_line(result, "trial.epochs: the study has 1, given is 2")


def test_a_directory_that_cannot_be_used_is_named(hpsearch: Hpsearch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = hpsearch("run", "quickstart", "--directory", "file/var")
    assert_one_line(result, "file/var/datasets: Not a directory", code=1)


def test_predict_names_what_it_cannot_use(hpsearch: Hpsearch, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert_one_line(hpsearch("predict", "empty", "a.jpg"), "empty: not an exported model")


def test_a_dashboard_for_other_machines_without_a_password_is_refused(hpsearch: Hpsearch) -> None:
    assert_one_line(hpsearch("dashboard", "--host", "0.0.0.0"), "give --password-file FILE")


def test_a_port_in_use_is_named(hpsearch: Hpsearch, tmp_path: Path) -> None:
    import socket

    from studies.storage import open_storage

    url = f"sqlite:///{tmp_path / 'a.db'}"
    open_storage(url, create=True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = hpsearch("dashboard", "--port", port, "--storage", url)
    assert_one_line(result, "give another --port")
