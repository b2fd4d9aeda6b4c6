import importlib
import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from data.errors import UserError
from search.cli import DEFAULT_GRACE, DEFAULT_PATIENCE, DEFAULT_STORAGE, app
from search.stop import GRACE_SECONDS
from studies.config import load_study_file
from studies.password import HASH_VARIABLE, PasswordHash
from studies.patience import DEFAULT_SECONDS
from studies.results import WORKER
from studies.storage import DEFAULT_URL, open_database, open_storage
from studies.study import create_or_continue
from tests.conftest import forget_heartbeats, invoke


def test_help_imports_neither_torch_nor_optuna() -> None:
    code = (
        "import sys; sys.argv = ['hpsearch', '--help']\n"
        "from search.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print({'torch', 'optuna', 'sqlalchemy', 'plotly', 'pydantic'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "set()"


def test_status_does_not_import_torch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['hpsearch', 'status', '--storage', sys.argv[1]]\n"
        "from studies.storage import open_storage\n"
        "open_storage(sys.argv[3], create=True)\n"
        "from search.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules)"
    )
    url = f"sqlite:///{tmp_path / 'a.db'}"
    result = subprocess.run(
        [sys.executable, "-c", code, url], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines() == ["no studies in this storage yet", "False"]


def test_status_says_who_is_at_work_and_who_has_gone_silent(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    storage = open_database(url, create=True)
    config, given = load_study_file("quickstart"), [{"learning_rate": 0.01}] * 2
    opened, _ = create_or_continue(storage, config, "0" * 16, given)
    waiting = storage.open_trials(opened.study._study_id)[1]
    for worker, trial_id in zip(("gone", "here"), (one.trial_id for one in waiting), strict=True):
        assert storage.take(trial_id)
        storage.set_trial_user_attr(trial_id, WORKER, worker)
        storage.report(trial_id, {1: 0.25}, {}, {})
        if worker == "gone":
            forget_heartbeats(storage)
    lines = [line.split() for line in invoke("status", "--storage", url).stdout.splitlines()]
    gone, here = ([line for line in lines if line[:1] == [name]] for name in ("gone", "here"))
    assert [line[:4] for line in (*gone, *here)] == [
        ["gone", "0", "1/10", "25.00%"],
        ["here", "1", "1/10", "25.00%"],
    ]
    assert "silent" in gone[0]
    assert "silent" not in here[0]
    (document,) = json.loads(invoke("status", "--json", "--storage", url).stdout)
    at_work = {one["worker"]: one["silent_since"] for one in document["at_work"]}
    assert at_work == {"gone": "2020-01-01T00:00:00Z", "here": None}


def test_the_defaults_that_stand_twice_are_one() -> None:
    assert DEFAULT_STORAGE == DEFAULT_URL
    assert DEFAULT_PATIENCE == DEFAULT_SECONDS
    assert DEFAULT_GRACE == GRACE_SECONDS


@pytest.mark.parametrize(
    "command",
    sorted(typer.main.get_command(app).commands),  # type: ignore[attr-defined]
)
def test_every_command_has_a_help_text(command: str) -> None:
    result = subprocess.run(
        [Path(sys.executable).parent / "hpsearch", command, "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Usage: hpsearch" in result.stdout
    assert len(result.stdout.splitlines()) > 5


def test_a_password_s_hash_is_printed_for_the_environment() -> None:
    result = CliRunner().invoke(app, ["dashboard", "--hash-password"], input="right\nright\n")
    assert result.exit_code == 0
    name, _, text = result.stdout.strip().partition("=")
    assert name == HASH_VARIABLE
    assert PasswordHash.parse(text).matches("right")
    assert "right" not in result.stdout


def test_the_version_is_printed() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"hpsearch {version('hpsearch')}\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "quickstart", "--set", "trial.epochs=0"], "trial.epochs: must be at least 1"),
        (["run", "quickstart", "--set", "space.lr=1"], "space.lr: unknown hyperparameter 'lr'"),
        (["worker", "misspelt.toml"], "space.lr: unknown hyperparameter 'lr'"),
        (["run", "quickstart", "--name", "b", "--warm-start", "nope"], "no study 'nope'"),
        (
            ["run", "quickstart", "--name", "b", "--warm-start", "quickstart"],
            "study 'quickstart': no trial is complete yet",
        ),
        (["run", "quickstart", "--set", "trial.epochs=11"], "trial.epochs: the study has 10"),
        (["run", "nope"], "no study 'nope' in this storage; there: quickstart"),
        (["export", "nope", "--output", "best"], "no study 'nope'"),
        (["export", "quickstart", "--output", "best"], "no trial is complete yet"),
        (["export", "quickstart", "--output", "best", "--trial", "3"], "no trial 3; there: none"),
    ],
)
def test_what_cannot_be_done_is_refused_before_pytorch_is_imported(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    create_or_continue(
        open_storage(url, create=True), load_study_file("quickstart"), "0" * 16, enqueued=[]
    )
    monkeypatch.chdir(tmp_path)
    misspelt = 'name = "misspelt"\n[space]\nlr = 1\n[budget]\ntrials = 1\n'
    (tmp_path / "misspelt.toml").write_text(misspelt)
    own = ("torch", "search", "model")
    for name in [name for name in sys.modules if name.partition(".")[0] in own]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)  # An import of it is an error from here on.
    cli = importlib.import_module("search.cli")
    with pytest.raises(UserError, match=re.escape(said)):
        typer.main.get_command(cli.app)([*arguments, "--storage", url], standalone_mode=False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["export", "x", "--output", "y", "--best", "2", "--trial", "1"], "--best and --trial"),
        (["export", "x", "--output", "y", "--with-preprocessing"], "add --format onnx or torch"),
        (["export", "x", "--output", "y", "--format", "onnx"], r"pip install -e '\.\[onnx\]'"),
        (["predict", "x", "a.png", "--json", "--csv"], "--json and --csv: give one of them"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_read(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if no extra were installed.
    monkeypatch.setattr("search.cli.find_spec", lambda _: None)
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, UserError)
    assert re.search(said, str(result.exception))
