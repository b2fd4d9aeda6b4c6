from pathlib import Path

import pytest

from studies.storage import open_database
from tests.benchmarks.service import Cell, read_results, run, table
from tests.benchmarks.service_databases import Database, Proxied, Sqlite
from tests.benchmarks.service_workers import EPOCHS, Timings


@pytest.mark.parametrize(("kind", "held"), [("sqlite", 0), ("proxy", 40)])
def test_both_services_run_the_same_trials(
    kind: str, held: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    database: Database = Sqlite(tmp_path)
    if kind == "proxy":
        database = Proxied(request.getfixturevalue("postgres_url"))
    cells = [Cell(kind, held, 2, service, 6, 0.0) for service in ("hpsearch", "optuna")]
    results = tmp_path / "results.jsonl"
    rows = list(run(database, cells, results))
    for row in rows:
        assert row.ended == 6
        assert not row.errors
        assert 0 < row.statements_per_epoch * EPOCHS < row.statements_per_trial
        assert row.ask[0] > row.tell[0] > 0
    ours, plain = rows
    assert ours.statements_per_epoch < plain.statements_per_epoch or kind == "proxy"
    # A report; whose the trial is, before its weights are replaced; and at three epochs of ten what
    # others had reached.
    assert ours.statements_per_epoch < 2.5 or kind == "sqlite"
    assert list(table(read_results(results))) == list(table(rows))
    *_, first, second = table(rows)
    assert " hpsearch |" in first
    assert " optuna |" in second


def test_pings_are_counted_apart_from_statements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_database(f"sqlite:///{tmp_path / 'a.db'}", create=True)
    counts = []
    for idle_seconds in (60, 0):
        monkeypatch.setattr("studies.storage.IDLE_SECONDS", idle_seconds)
        timings = Timings()
        timings.count(storage)
        storage.get_all_studies()
        counts.append((timings.statements, timings.pings > 0))
    (unpinged, no), (pinged, yes) = counts
    assert (no, yes) == (False, True)
    assert unpinged == pinged > 0
