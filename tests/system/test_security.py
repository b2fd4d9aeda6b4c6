"""What must not be shown, and what somebody who can write to the database must not achieve."""

import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest
import sqlalchemy

from data.errors import UserError
from search.prepare import create_from_file
from studies.config import load_study_file
from studies.results import ERROR, WORKER
from studies.storage import open_storage
from studies.study import CONFIG, IDENTITY, create_or_continue, open_study
from tests.conftest import everything_stored

Hpsearch = Callable[..., subprocess.CompletedProcess[str]]

IN_URL, IN_ENVIRONMENT, IN_FILE = "tell-no-one", "nor-anybody", "keep-it"
SECRETS = (IN_URL, IN_ENVIRONMENT, IN_FILE, "k3y")

# It says the password in whatever way an exception may.
OBJECTIVE = """
import logging, os, warnings
import sqlalchemy
from model.trial import EpochResult
def train(parameters, context):
    if parameters["x"] == 1:
        raise RuntimeError(f"cannot reach {os.environ['HPSEARCH_STORAGE']} or https://a:k3y@b/c")
    if parameters["x"] == 2:
        sqlalchemy.create_engine(
            "postgresql+psycopg://me:tell-no-one@127.0.0.1:1/x"
        ).connect()
    if parameters["x"] == 3:
        logging.getLogger("optuna.trial").warning("optuna says tell-no-one")
        warnings.warn("a warning of nor-anybody")
        raise KeyError("tell-no-one nor-anybody")
    yield EpochResult(1, 0.5, 1.0, 100.0, {})
"""
STUDY = """
name = "own"
trial = { objective = "objectives:train", epochs = 1 }
space = { x = [0, 1, 2, 3] }
sampler = { name = "grid" }
budget = { trials = 4 }
"""


@contextmanager
def watched_process_list() -> Iterator[list[bytes]]:
    """Every command line that there is in the meantime."""
    seen: set[bytes] = set()
    found: list[bytes] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    seen.add(file.read_bytes())
                except OSError:
                    continue  # It has ended.

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()
        found += seen


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="reads /proc")
def test_the_database_s_passwords_are_shown_nowhere(
    hpsearch: Hpsearch,
    write_own_study: Callable[[str, str], Path],
    postgres_url: str,
    tmp_path: Path,
) -> None:
    study = write_own_study(OBJECTIVE, STUDY)
    passfile = tmp_path / "pgpass"
    passfile.write_text(f"*:*:*:*:{IN_FILE}\n")
    passfile.chmod(0o600)
    url = sqlalchemy.make_url(postgres_url).set(password=IN_URL)
    environment = {
        "HPSEARCH_STORAGE": url.render_as_string(hide_password=False),
        "PGPASSWORD": IN_ENVIRONMENT,
        "PGPASSFILE": str(passfile),
    }
    with watched_process_list() as command_lines:
        run = hpsearch("run", study, "--workers", 1, **environment)
    assert any(b"search.cli\0worker" in line for line in command_lines)
    assert "1 complete" in run.stdout
    status = hpsearch("status", "own", "--json", **environment)
    stored = everything_stored(postgres_url)
    written = [
        file.read_text(errors="replace")
        for file in (tmp_path / "var").rglob("*")
        if file.suffix in (".log", ".json", ".md")
    ]
    processes = b"\n".join(command_lines).decode(errors="replace")
    for text in (run.stdout, run.stderr, status.stdout, status.stderr, stored, processes, *written):
        assert not any(secret in text for secret in SECRETS)
    # The rest is there.
    assert "optuna says ***" in run.stderr
    assert "a warning of ***" in run.stderr
    assert "cannot reach postgresql" in stored
    assert "https://a:***@b/c" in stored
    assert "*** ***" in stored


def test_a_password_on_the_command_line_is_refused(hpsearch: Hpsearch) -> None:
    for url in ("postgresql://me:pw@db/x", "postgresql://db/x?password=pw"):
        result = hpsearch("status", "--storage", url)
        assert result.returncode == 2
        assert "HPSEARCH_STORAGE" in result.stderr
        assert "pw" not in result.stderr.replace("PGPASSWORD", "")


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A study of one complete trial, with a parameter of 10 MB."""
    url = f"sqlite:///{tmp_path / 'hpsearch.db'}"
    study = create_or_continue(
        open_storage(url, create=True), load_study_file("quickstart"), "00", []
    )[0].study
    trial = study.ask()
    trial.suggest_categorical("optimizer", ["[link=x]y[/link]\x1b[2J" + "z" * 10_000_000])
    trial.set_user_attr(WORKER, ["not", "a", "name"])
    trial.set_user_attr(ERROR, {"<b>": "\ud800"})
    study.tell(trial, 0.5)
    return url


def test_hostile_rows_neither_hide_nor_disturb_what_is_sound(hpsearch: Hpsearch, url: str) -> None:
    hostile = "[bold]<script>\x1b[2J\x1b]0;mine\x07[/nothing]"
    study = optuna.create_study(study_name=hostile, storage=open_storage(url))
    study.set_user_attr(IDENTITY, "../../etc")
    study.set_user_attr(CONFIG, {"name": hostile, "space": {"x": "y" * 10_000_000}})
    shown = hpsearch("status", HPSEARCH_STORAGE=url)
    assert shown.returncode == 0, shown.stderr
    assert "quickstart" in shown.stdout
    assert "[link=x]y[/link]" in shown.stdout
    assert "<script>" in shown.stdout
    assert "\x1b" not in shown.stdout + shown.stderr
    assert len(shown.stdout) < 20_000
    as_json = hpsearch("status", "--json", HPSEARCH_STORAGE=url).stdout
    assert "\x1b" not in as_json
    assert [("error" in document) for document in json.loads(as_json)] == [False, True]


def test_a_study_whose_folder_would_be_elsewhere_is_refused_and_no_file_written(
    url: str, tmp_path: Path
) -> None:
    storage = open_storage(url)
    study_id = storage.get_study_id_from_name("quickstart")
    storage.set_study_user_attr(study_id, IDENTITY, "/../../outside\x1b[2J")
    root = tmp_path / "var"
    before = set(tmp_path.rglob("*"))
    config = load_study_file("quickstart")
    for command in (
        lambda: create_from_file(storage, config, "quickstart", root),
        lambda: open_study("quickstart", storage),
    ):
        with pytest.raises(UserError, match="identity was not written by hpsearch"):
            command()
    assert set(tmp_path.rglob("*")) == before


def test_rows_that_optuna_cannot_read_are_said_so_in_one_line(hpsearch: Hpsearch, url: str) -> None:
    with sqlalchemy.create_engine(url).begin() as connection:
        connection.execute(
            sqlalchemy.text('UPDATE trial_params SET distribution_json = \'{"name": "Evil"}\'')
        )
    result = hpsearch("status", HPSEARCH_STORAGE=url)
    assert result.returncode == 0, "who looks at a study sees what is sound of it"
    assert "trial 0 counts as failed: what is stored of it cannot be read: " in result.stderr
    assert len(result.stderr.splitlines()) == 1
    with sqlalchemy.create_engine(url).begin() as connection:
        connection.execute(sqlalchemy.text("UPDATE trials SET state = 'EVIL'"))
    result = hpsearch("status", HPSEARCH_STORAGE=url)
    assert result.returncode == 1
    assert "the storage cannot be read" in result.stderr
    assert "Traceback" not in result.stderr
