"""Study files and stored attributes that somebody has made to do harm."""

import itertools
import json
import math
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from data.dataset import load_dataset
from data.errors import UserError
from data.split import split_for_training
from model.trial import EpochResult, TrialContext
from search.enqueue import TOKEN
from search.live import View, render, results_table
from search.lost import LostTrials
from search.objective import check_space
from search.prepare import first_trials
from search.space import ENQUEUED, make_space
from search.stop import StopRequest
from search.terminal import SafeConsole
from search.warm import EARLIER_TRIALS, earlier_trials
from search.worker import Worker
from studies.checkpoints import open_checkpoints
from studies.config import SHIPPED_DIRECTORY, load_study_file, parse_study
from studies.confirmation import CONFIRMATION, SEARCHED, confirmation_of
from studies.database import DatabaseStorage
from studies.ownership import OwnedStorage
from studies.patience import Patience
from studies.results import (
    DEVICE,
    DIVERGED,
    DTYPE,
    EARLIER_RUNS,
    EPOCHS_BEFORE,
    ERROR,
    IMAGES_PER_SECOND,
    LOSSES,
    OWNER,
    SEED,
    THREADS,
    WORKER,
    as_json,
    rank,
    record,
    summarise,
    utc_now,
)
from studies.storage import open_database, open_storage
from studies.study import create_or_continue, open_study

DIGEST = "0123456789abcdef"
SHIPPED_TEXT = (SHIPPED_DIRECTORY / "quickstart.toml").read_text()
SHIPPED_CONTENT = tomllib.loads(SHIPPED_TEXT)

TEXTS = st.sampled_from(
    [
        *("", "/../../etc", "/etc/passwd", "os.system:x", "a:b;c", "<script>alert(1)</script>"),
        *("[bold]x[/]", "[/nothing]", "\x1b[2J", "x" * 10_000, "\u202e", "name\n", "..", "1e400"),
    ]
)
ATOMS = (
    TEXTS
    | st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(2**63), 2**53 + 1])
    | st.floats()
    | st.text(max_size=20)
)
VALUES = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["low", "high", "log", "name", "trials", "../x"]), inner)
    ),
    max_leaves=8,
)
QUICK = settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@contextmanager
def refused_in_a_line() -> Iterator[None]:
    """Only a `UserError` may be raised within, and a short one."""
    reason = ""
    try:
        yield
    except UserError as error:
        reason = str(error)
    assert len(reason) < 2000


def paths(content: dict[str, Any], prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for key, value in content.items():
        found.append((*prefix, key))
        if isinstance(value, dict):
            found += paths(value, (*prefix, key))
    return found


PATHS = [*paths(SHIPPED_CONTENT), ("trial", "objective"), ("space", "x"), ("<b>", "x"), ("name",)]


def use(content: dict[str, Any]) -> None:
    """All that is done with a study file before anything is created."""
    config = parse_study(content, "hostile.toml")
    make_space(config.space)
    check_space(config, "hostile.toml")
    first_trials(config, "hostile.toml")
    module, _, function = config.trial.objective.partition(":")
    assert all(part.isidentifier() for part in [*module.split("."), function])
    assert "/" not in config.name
    assert not config.name.startswith(".")


@QUICK
@given(st.sampled_from(PATHS), VALUES)
@example(("space", "learning_rate"), {"low": 1.5, "high": 10**400})
@example(("space", "learning_rate"), [1.5, 10**400])
@example(("name",), "../../etc")
@example(("trial", "objective"), "os.system:x; y")
def test_a_setting_of_any_kind_is_taken_or_refused_in_a_line(
    path: tuple[str, ...], value: object
) -> None:
    content = json.loads(json.dumps(SHIPPED_CONTENT))
    *sections, key = path
    section = content
    for name in sections:
        section = section.setdefault(name, {})
    section[key] = value
    with refused_in_a_line():
        use(content)


@QUICK
@given(st.data())
def test_a_study_file_of_any_text_is_taken_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(SHIPPED_TEXT)))
    end = data.draw(st.integers(start, min(start + 40, len(SHIPPED_TEXT))))
    inserted = data.draw(st.text(max_size=20) | TEXTS | st.sampled_from(["[", "]]", '"""', "= {"]))
    file = tmp_path / "hostile.toml"
    text = SHIPPED_TEXT[:start] + inserted + SHIPPED_TEXT[end:]
    file.write_bytes(text.encode(errors="surrogatepass"))
    with refused_in_a_line():
        load_study_file(str(file))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = " + "[" * 100_000, "too deeply"),
        ("x = " + "9" * 5000, "not TOML"),
        ("x = '" + "a" * 10_000_000 + "'", "larger than"),
        (SHIPPED_TEXT.replace('"quickstart"', '"../../etc"', 1), "name"),
        (SHIPPED_TEXT + "\n[x]\n" + "a" * 10_000 + " = 1\n", "unknown key"),
    ],
)
def test_a_file_that_is_too_much_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "hostile.toml"
    file.write_text(text)
    with pytest.raises(UserError, match=said) as error:
        load_study_file(str(file))
    assert len(str(error.value)) < 2000


def test_a_path_that_is_none_is_refused() -> None:
    for path in ("a\0.toml", "x" * 5000 + ".toml", "/"):
        with pytest.raises(UserError):
            load_study_file(path)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> OwnedStorage:
    """A real study of one complete trial."""
    url = f"sqlite:///{tmp_path_factory.mktemp('hostile') / 'a.db'}"
    opened = open_storage(url, create=True)
    confirming = load_study_file("quickstart", {"name": "quickstart-confirm"})
    create_or_continue(opened, confirming, DIGEST, [])
    study = create_or_continue(opened, load_study_file("quickstart"), DIGEST, [])[0].study
    trial = study.ask()
    trial.suggest_categorical("<b>[/x]\x1b[2J", ["unknown"])
    trial.suggest_categorical("optimizer", ["[/x]\x1b[2J" + "y" * 10_000])
    trial.report(0.5, 1)
    study.tell(trial, 0.5)
    study.ask().report(0.5, 1)
    return opened


@QUICK
@given(
    st.sampled_from(
        ["config", "budget", "checkpoints", "identity", "data_digest", "versions", "warm_start"]
    ),
    VALUES,
)
@example("identity", "/../../etc")
@example("config", "x")
@example("budget", {"trials": "x"})
def test_a_stored_attribute_of_any_kind_is_harmless(
    storage: OwnedStorage, key: str, value: object
) -> None:
    study_id = storage.get_study_id_from_name("quickstart")
    before = storage.get_study_user_attrs(study_id)
    storage.set_study_user_attr(study_id, key, value)
    try:
        with refused_in_a_line():
            opened = open_study("quickstart", storage)
            root = Path("var")
            assert opened.directory(root).resolve().parent == root.resolve()
            assert opened.config.name == "quickstart"
    finally:
        storage.set_study_user_attr(study_id, key, before.get(key))


@QUICK
@given(VALUES)
def test_what_was_kept_of_another_study_is_checked(storage: OwnedStorage, value: object) -> None:
    study_id = storage.get_study_id_from_name("quickstart")
    opened = open_study("quickstart", storage)
    storage.set_study_user_attr(study_id, EARLIER_TRIALS, value)
    with refused_in_a_line():
        earlier_trials(opened)
    confirming = storage.get_study_id_from_name("quickstart-confirm")
    storage.set_study_user_attr(confirming, SEARCHED, opened.identity)
    storage.set_study_user_attr(confirming, CONFIRMATION, value)
    with refused_in_a_line():
        confirmation_of(opened)
    storage.set_study_user_attr(confirming, CONFIRMATION, {"asked": [[0, 1]], "result": value})
    with refused_in_a_line():
        confirmation_of(opened)


@QUICK
@given(
    st.sampled_from(
        [WORKER, ERROR, DIVERGED, IMAGES_PER_SECOND, EPOCHS_BEFORE, EARLIER_RUNS, DEVICE]
    ),
    VALUES,
)
@example(WORKER, "\x1b[2J")
@example(WORKER, ["[/nothing]"])
@example(ERROR, "[/nothing]\ud800")
@example(IMAGES_PER_SECOND, "fast")
@example(EPOCHS_BEFORE, "many")
@example(EARLIER_RUNS, [{"started": "2026-01-01", "ended": "2025-01-01T00:00:00Z", "epochs": "x"}])
def test_a_trial_s_attribute_of_any_kind_can_be_shown(
    storage: OwnedStorage, key: str, value: object
) -> None:
    opened = open_study("quickstart", storage)
    running = opened.study.get_trials(deepcopy=False)[1]
    storage.set_trial_user_attr(running._trial_id, key, value)
    records = [record(trial) for trial in opened.study.get_trials(deepcopy=False)]
    json.dumps(as_json(summarise(records), rank(records)))
    console = SafeConsole()
    with console.capture() as shown:
        console.print(results_table(records, opened.config, 5))
        console.print(render(View(opened.config, "", records, [], utc_now(), 0.0, 0, None)))
        console.print(records[1].reason)
    assert "\x1b" not in shown.get()
    assert len(shown.get()) < 20_000
    shown.get().encode()


SPACE = {"rate": {"low": 0.01, "high": 0.1}, "layers": {"low": 1, "high": 3}, "kind": ["a", "b"]}
OF_THE_USER = [OWNER, LOSSES, SEED, DTYPE, THREADS, DEVICE, TOKEN, EPOCHS_BEFORE, EARLIER_RUNS]
OF_OPTUNA = [ENQUEUED, "gp:relative_params:0"]
NO_JSON = ["", "{", "NaN", "1e999", "[" * 20_000, "9" * 5000, "\ud800"]
DISTRIBUTIONS = [
    '{"name": "FloatDistribution", "attributes": {"low": 0.01, "high": 0.1}}',
    '{"name": "FloatDistribution", "attributes": {"low": -1e300, "high": 1e300}}',
    '{"name": "FloatDistribution", "attributes": {"low": 0.01, "high": 0.1, "log": true}}',
    '{"name": "IntDistribution", "attributes": {"low": 1, "high": 1000}}',
    '{"name": "CategoricalDistribution", "attributes": {"choices": ["a", "b"]}}',
    '{"name": "CategoricalDistribution", "attributes": {"choices": ["b", null]}}',
    *('{"name": "Evil"}', "[]", '{"name": "FloatDistribution"}', *NO_JSON),
]
ATTRIBUTES = st.tuples(st.sampled_from(OF_THE_USER), VALUES.map(json.dumps))
DAMAGED = st.tuples(st.sampled_from(OF_THE_USER + OF_OPTUNA), st.sampled_from(NO_JSON))
FIXED = st.tuples(
    st.sampled_from(OF_OPTUNA),
    (VALUES | st.dictionaries(st.sampled_from([*SPACE, "x"]), ATOMS)).map(json.dumps),
)
PARAMETERS = st.tuples(
    st.sampled_from([*SPACE, "x"]),
    st.sampled_from([0.0, 1.0, 0.05, -1.0, 7.5, 1e300, math.inf, "many"]),
    st.sampled_from(DISTRIBUTIONS),
)
EPOCHS = st.tuples(
    st.sampled_from([-1, 0, 1, 2, 10**6]),
    st.sampled_from([None, 0.5, 1e300, "high"]),
    st.sampled_from(["FINITE", "INF_POS", "INF_NEG", "NAN", "EVIL"]),
)


@pytest.fixture(scope="module")
def prepare_worker(
    tmp_path_factory: pytest.TempPathFactory, data_cache: Path
) -> Callable[[], tuple[Worker, int]]:
    """Makes a worker of a study whose first trial waits; and the trial's identity."""
    root = tmp_path_factory.mktemp("worker")
    storage = open_database(f"sqlite:///{root / 'a.db'}", create=True)
    data = split_for_training(load_dataset("cifar10-mini", data_cache), 0.1, 0)
    numbers = itertools.count()

    def train(parameters: Mapping[str, Any], context: TrialContext) -> Iterator[EpochResult]:
        torch.manual_seed(context.seed)
        assert 0.01 <= parameters["rate"] <= 0.1
        assert parameters["kind"] in ("a", "b")
        for epoch in range(1, context.epochs + 1):
            yield EpochResult(epoch, parameters["rate"] * parameters["layers"], 1.0, 1.0, {})

    def prepare() -> tuple[Worker, int]:
        content = {
            "name": f"fuzz-{next(numbers)}",
            "trial": {"epochs": 2, "objective": "of.the.test:train"},
            "space": SPACE,
            "sampler": {"name": "gp", "startup_trials": 1},
            "budget": {"trials": 3},
        }
        opened, _ = create_or_continue(
            storage, parse_study(content, "fuzz"), DIGEST, [{"rate": 0.05}]
        )
        worker = Worker(
            opened=opened,
            storage=storage,
            objective=train,
            data=data,
            device=torch.device("cpu"),
            checkpoints=open_checkpoints(opened, root, None),
            stop=StopRequest(grace_seconds=3600),
            patience=Patience(0),
            lost_trials=LostTrials(opened, storage),
            deadline=time.time() + 20,
        )
        return worker, storage.open_trials(opened.study._study_id)[1][0].trial_id

    return prepare


def leave(worker: Worker, trial_id: int, stored: tuple[Any, ...]) -> None:
    """In the database, past Optuna, what is drawn of `ATTRIBUTES`, `PARAMETERS` or `EPOCHS`."""
    if len(stored) == 2:
        kind = "system" if stored[0] in OF_OPTUNA else "user"
        table, columns = f"trial_{kind}_attributes", "key, value_json"
    elif isinstance(stored[0], str):
        table, columns = "trial_params", "param_name, param_value, distribution_json"
    else:
        table = "trial_intermediate_values"
        columns = "step, intermediate_value, intermediate_value_type"
    assert isinstance(worker.storage, DatabaseStorage)
    places = ", ".join("?" * len(stored))
    with worker.storage.engine.begin() as connection:
        connection.exec_driver_sql(
            f"INSERT OR REPLACE INTO {table} (trial_id, {columns}) VALUES (?, {places})",
            (trial_id, *(escaped(part) for part in stored)),
        )


def escaped(part: object) -> object:
    return part.encode(errors="replace").decode() if isinstance(part, str) else part


@settings(QUICK, max_examples=10)
@given(st.lists(ATTRIBUTES | DAMAGED | FIXED | PARAMETERS | EPOCHS, min_size=1, max_size=3))
@example([(ENQUEUED, "{")])
@example([(ENQUEUED, '{"rate": 1e300}')])
@example([("gp:relative_params:0", '"{"')])
@example([("rate", 1e300, DISTRIBUTIONS[1])])
@example([("rate", 0.05, DISTRIBUTIONS[3])])
@example([("x", math.inf, DISTRIBUTIONS[0])])
@example([("kind", 1.0, DISTRIBUTIONS[5])])
@example([(1, None, "FINITE")])
@example([(1, "high", "FINITE")])
def test_a_worker_outlives_what_was_left_in_a_waiting_trial_and_no_sound_trial_is_lost(
    prepare_worker: Callable[[], tuple[Worker, int]], left: list[tuple[Any, ...]]
) -> None:
    worker, trial_id = prepare_worker()
    for stored in left:
        leave(worker, trial_id, stored)
    worker.work()
    records = worker.opened.records
    assert summarise(records).finished == 3
    assert {record.state for record in records[1:]} <= {"complete", "pruned"}
    assert records[0].state in ("complete", "pruned", "failed")
    assert (records[0].state == "failed") == (records[0].reason is not None)
