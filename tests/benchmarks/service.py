"""What does the service cost a trial, and how many workers can a database serve?

    python -m tests.benchmarks.service --results service.jsonl
    python -m tests.benchmarks.service --workers 16 --epoch-seconds 1 --trials 64

The first is the entire table: 48 cells of 1,000 trials, some three hours on two cores (reckoned
from smaller cells). Interrupted, it goes on after the last cell in the file. Do nothing else on
the machine. 64 processes of plain Optuna that have each read 10,000 trials need more than 24 GB:
with less, leave that cell out (`--workers 1 4 16 32`, then `--workers 64 --services hpsearch`).

Trials that only sleep and report ten epochs, by real workers (`search.worker`), each a process of
its own, in a new study and in one that holds 10,000 trials; beside them plain `study.optimize` in
as many processes, on a copy of the same database, with the same sampler (random, so that the
database is measured and not the sampler), and each its own median pruner: ours judges after epochs
1, 3 and 9, Optuna's after each. The space is that of `quickstart`. All curves are the same, so that
none is pruned: every trial reports ten epochs on both sides.

Of each: trials a second from a common start, at which the processes have their imports done and
the storage opened; the same in the second half of the trials, when every process has read what it
reads at its start; SQL statements, without those that begin and end a transaction (through the
proxy: calls of it), and apart from them the pings of connections that were idle; and the time of

    ask      from the end of the last trial to the first epoch of this one (a worker's first: from
             the start)
    epoch    report and should_prune; of ours also the attributes and the checkpoint's handing over
    tell     until the trial has ended in the study

With `--epoch-seconds 0` (the default) the workers do nothing but ask, report and tell: that is the
greatest load that they can make, and shows when processes wait for each other. What an epoch costs
a worker is seen with epochs of a second. Plain Optuna waits 300 seconds for a lock: it would give
up after SQLite's 5 seconds.

`proxy` is PostgreSQL again, with one process that speaks to it for all workers: `hpsearch
storage-proxy` for ours, Optuna's own `run_grpc_proxy_server` for plain Optuna. Where its rows are
faster than those of `postgresql` with as many workers, it pays.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import platform
import sqlite3
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

from tests.benchmarks.service_databases import Database, databases, make_study
from tests.benchmarks.service_workers import EPOCHS, Load, serve, share

SERVICES = ("hpsearch", "optuna")
DATABASES = ("sqlite", "postgresql", "proxy")


@dataclass(frozen=True, slots=True)
class Cell:
    """What is measured at once."""

    database: str
    held: int
    """Trials that the study has before."""
    workers: int
    service: str
    trials: int
    epoch_seconds: float


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table; times in milliseconds."""

    cell: Cell
    ended: int
    """Trials."""
    trials_per_second: float
    second_half: float
    """Trials a second in the second half."""
    cpu: float
    """A trial's, of the worker's process, with its share of what is read at the start."""
    statements_per_trial: float
    statements_per_epoch: float
    pings_per_trial: float
    ask: tuple[float, float]
    """Median and 99th percentile."""
    epoch: tuple[float, float]
    tell: tuple[float, float]
    errors: tuple[str, ...]
    """Of processes that died."""


def measure(database: Database, cell: Cell) -> Row:
    """Run trials in a copy of the database `held_N`."""
    workers, trials = cell.workers, cell.trials
    url = database.copy(f"held_{cell.held}", "running")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["search.worker", "tests.benchmarks.service_workers"])
    barrier = context.Barrier(workers)
    shares = [trials // workers + (index < trials % workers) for index in range(workers)]
    try:
        with (
            tempfile.TemporaryDirectory() as root,
            database.served(url, cell.service) as address,
            context.Pool(workers, share, (barrier, context.Lock())) as pool,
        ):
            loads = [
                Load(cell.service, address, root, share, cell.epoch_seconds, seed)
                for seed, share in enumerate(shares)
            ]
            # Each waits for the others: so each gets one.
            done = pool.map(serve, loads, chunksize=1)
    finally:
        database.remove("running")
    if not (all(timings.started for timings in done) and any(timings.ends for timings in done)):
        errors = {timings.error for timings in done if timings.error}
        raise RuntimeError(f"{cell.service} could not run: {'; '.join(errors)}")
    ends = sorted(end for timings in done for end in timings.ends)
    started = min(timings.started for timings in done)
    count = len(ends)
    half = count // 2
    epochs = sum(len(timings.epoch) for timings in done)
    return Row(
        cell=cell,
        ended=count,
        trials_per_second=count / (ends[-1] - started),
        second_half=(count - half) / (ends[-1] - ends[half - 1]),
        cpu=1000 * sum(timings.cpu for timings in done) / count,
        statements_per_trial=sum(timings.statements for timings in done) / count,
        statements_per_epoch=sum(timings.statements_in_epochs for timings in done) / epochs,
        pings_per_trial=sum(timings.pings for timings in done) / count,
        ask=_milliseconds([second for timings in done for second in timings.ask]),
        epoch=_milliseconds([second for timings in done for second in timings.epoch]),
        tell=_milliseconds([second for timings in done for second in timings.tell]),
        errors=tuple(timings.error for timings in done if timings.error),
    )


def _milliseconds(seconds: Sequence[float]) -> tuple[float, float]:
    return 1000 * statistics.median(seconds), 1000 * statistics.quantiles(seconds, n=100)[-1]


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Markdown; with the ratio of our trials a second to plain Optuna's beside it."""
    titles = (
        *("database", "held", "workers", "service", "trials/s", "in 2nd half", "of plain"),
        *("CPU, ms", "asked/trial", "asked/epoch", "pings/trial"),
        *("ask, ms", "epoch, ms", "tell, ms", "died"),
    )
    yield f"| {' | '.join(titles)} |"
    yield "|" + "---|" * len(titles)
    plain = {row.cell: row.trials_per_second for row in rows if row.cell.service == "optuna"}
    for row in rows:
        cell = row.cell
        beside = plain.get(replace(cell, service="optuna"))
        times = [f"{median:.1f} / {most:.0f}" for median, most in (row.ask, row.epoch, row.tell)]
        cells = [
            *(cell.database, f"{cell.held:,}", str(cell.workers), cell.service),
            *(f"{row.trials_per_second:.1f}", f"{row.second_half:.1f}"),
            f"{row.trials_per_second / beside:.1f} x" if beside else "",
            *(
                f"{row.cpu:.0f}",
                f"{row.statements_per_trial:.0f}",
                f"{row.statements_per_epoch:.1f}",
                f"{row.pings_per_trial:.1f}",
            ),
            *times,
            str(len(row.errors)) if row.errors else "",
        ]
        yield "| " + " | ".join(cells) + " |"


def describe(arguments: argparse.Namespace) -> str:
    return (
        f"{arguments.trials:,} trials a cell, one run, of {EPOCHS} epochs of "
        f"{arguments.epoch_seconds:g} s; "
        f"{os.cpu_count()} cores ({platform.machine()}), "
        f"Python {platform.python_version()}, Optuna {version('optuna')}, "
        f"SQLAlchemy {version('sqlalchemy')}, SQLite {sqlite3.sqlite_version}; "
        "times are median / 99th percentile"
    )


def read_results(file: Path | None) -> list[Row]:
    """What was measured before."""
    if file is None or not file.exists():
        return []
    found = [json.loads(line) for line in file.read_text().splitlines()]
    return [Row(**{**row, "cell": Cell(**row["cell"])}) for row in found]


def run(database: Database, cells: Sequence[Cell], results: Path | None) -> Iterator[Row]:
    """Measure cells of one database, each study filled once."""
    for held in sorted({cell.held for cell in cells}):
        of_study = [cell for cell in cells if cell.held == held]
        make_study(database.create(f"held_{held}"), held, of_study[0].trials)
        for cell in of_study:
            row = measure(database, cell)
            if results is not None:
                with results.open("a") as file:
                    file.write(json.dumps(asdict(row)) + "\n")
            yield row
        database.remove(f"held_{held}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--databases", nargs="+", default=DATABASES, choices=DATABASES)
    parser.add_argument("--postgresql", metavar="URL", help="of a server; else one is started")
    parser.add_argument("--held", type=int, nargs="+", default=[0, 10_000])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--services", nargs="+", default=SERVICES, choices=SERVICES)
    parser.add_argument("--trials", type=int, default=1_000)
    parser.add_argument("--epoch-seconds", type=float, default=0.0)
    parser.add_argument(
        "--results",
        type=Path,
        metavar="FILE",
        help="append each row as a line of JSON; cells that are there are not measured again",
    )
    arguments = parser.parse_args()
    of_table = (arguments.databases, arguments.held, arguments.workers, arguments.services)
    cells = [
        Cell(database, held, workers, service, arguments.trials, arguments.epoch_seconds)
        for database, held, workers, service in itertools.product(*of_table)
    ]
    rows = {row.cell: row for row in read_results(arguments.results)}
    missing = [cell for cell in cells if cell not in rows]
    with databases({cell.database for cell in missing}, arguments.postgresql) as found:
        for database in found:
            of_it = [cell for cell in missing if cell.database == database.name]
            for row in run(database, of_it, arguments.results):
                rows[row.cell] = row
                print(list(table([row]))[-1], file=sys.stderr, flush=True)
    print(describe(arguments))
    print("\n".join(table([rows[cell] for cell in cells])))


if __name__ == "__main__":
    main()
