"""Tables and a picture of finished simulations."""

import base64
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tests.benchmarks.search import TOP, Result

Array = NDArray[np.float64]

SHOWN_AFTER = (0.25, 0.5, 1.0)
"""Fractions of the budget of epochs at which the table shows the regret."""
COLOURS: Mapping[str, str] = {
    "random": "#7f7f7f",
    "grid": "#bcbd22",
    "manual": "#8c564b",
    "tpe": "#1f77b4",
    "stock-gp": "#ff7f0e",
    "gp": "#2ca02c",
}
OTHER_COLOURS = ("#d62728", "#9467bd", "#e377c2", "#17becf")
DASHES: Mapping[str, str] = {"none": "dot", "median": "solid", "asha": "dash"}


def mean_and_error(values: ArrayLike, problems: Sequence[str]) -> tuple[Array, Array]:
    """Mean, and its standard error: over problems, or over seeds if there is one problem.

    The problems differ far more than the seeds: a problem's mean is one observation.

    Args:
        values: shape (runs, ...).
        problems: of each run.
    """
    observed = np.asarray(values, dtype=np.float64)
    names = sorted(set(problems))
    if len(names) > 1:
        mine = np.array(problems)
        observed = np.array([observed[mine == name].mean(axis=0) for name in names])
    if len(observed) == 1:
        return observed[0], np.full_like(observed[0], np.nan)
    return observed.mean(axis=0), observed.std(axis=0, ddof=1) / len(observed) ** 0.5


def traces(results: Sequence[Result]) -> Array:
    """Regrets, shape (runs, epochs); a run that ended early keeps its last one."""
    epochs = max(len(result.regret) for result in results)
    return np.array(
        [result.regret + result.regret[-1:] * (epochs - len(result.regret)) for result in results]
    )


def by_strategy(results: Sequence[Result]) -> dict[str, list[Result]]:
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.run.strategy, []).append(result)
    return groups


def summarise(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The rows of a family's table, a strategy each: means and [mean, standard error]."""
    return [_row(strategy, runs) for strategy, runs in by_strategy(results).items()]


def _row(strategy: str, runs: Sequence[Result]) -> dict[str, Any]:
    names = [result.run.problem for result in runs]
    regret = traces(runs)
    epochs = regret.shape[1]

    def pair(values: ArrayLike) -> list[float | None]:
        mean, error = mean_and_error(values, names)
        return [float(mean), None if np.isnan(error) else float(error)]

    return {
        "strategy": strategy,
        "runs": len(runs),
        "problems": len(set(names)),
        "regret": {
            count: pair(regret[:, count - 1])
            for count in (round(part * epochs) for part in SHOWN_AFTER)
        },
        "auc": pair(regret.mean(axis=1)),
        "trials": float(np.mean([result.trials for result in runs])),
        "complete": float(np.mean([result.complete for result in runs])),
        "seconds_per_ask": float(np.median([result.seconds_per_ask for result in runs])),
        "saved": pair([result.pruning.saved for result in runs]),
        "killed_best": pair([result.pruning.killed_best for result in runs]),
        "killed_top": pair([result.pruning.killed_top for result in runs]),
        "lost": pair([result.pruning.lost for result in runs]),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Regret, as Markdown."""
    epochs = list(rows[0]["regret"])
    yield (
        "| sampler + pruner | "
        + " | ".join(f"after {count}" for count in epochs)
        + " | AUC | trials | complete | s an ask |"
    )
    yield "|---" * (len(epochs) + 5) + "|"
    for row in rows:
        yield (
            f"| {row['strategy']} | "
            + " | ".join(_plain(row["regret"][count]) for count in epochs)
            + f" | {_plain(row['auc'])} | {row['trials']:.0f} | {row['complete']:.0f} | "
            f"{row['seconds_per_ask']:.3f} |"
        )


def pruning_table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What pruning saved and cost, as Markdown."""
    yield f"| sampler + pruner | epochs saved | killed the best | of the top {TOP} | regret lost |"
    yield "|---" * 5 + "|"
    for row in rows:
        yield (
            f"| {row['strategy']} | {_percent(row['saved'])} | {_percent(row['killed_best'])} | "
            f"{_plain(row['killed_top'], 2)} | {_plain(row['lost'])} |"
        )


def _plain(pair: Sequence[float | None], digits: int = 3) -> str:
    mean, error = pair
    return f"{mean:.{digits}f}" + (f" ± {error:.{digits}f}" if error is not None else "")


def _percent(pair: Sequence[float | None]) -> str:
    mean, error = pair
    return f"{mean:.0%}" + (f" ± {error:.0%}" if error is not None else "")


def draw(families: Mapping[str, Sequence[Result]], path: Path) -> None:
    """Regret over epochs, a panel a family, a curve with its standard error a strategy."""
    from plotly.subplots import make_subplots

    figure = make_subplots(
        cols=len(families), subplot_titles=list(families), horizontal_spacing=0.05
    )
    colours = dict(COLOURS)
    shown: set[str] = set()
    for column, results in enumerate(families.values(), start=1):
        for strategy, runs in by_strategy(results).items():
            sampler = strategy.partition("+")[0]
            pruner = strategy.partition("+")[2].partition(":")[0]
            colour = colours.setdefault(sampler, OTHER_COLOURS[len(colours) % len(OTHER_COLOURS)])
            mean, error = mean_and_error(traces(runs), [run.run.problem for run in runs])
            epochs = list(range(1, len(mean) + 1))
            band = np.nan_to_num(error)
            figure.add_scatter(
                x=epochs + epochs[::-1],
                y=[*(mean + band), *(mean - band)[::-1]],
                fill="toself",
                fillcolor=colour,
                opacity=0.15,
                line_width=0,
                hoverinfo="skip",
                showlegend=False,
                legendgroup=strategy,
                row=1,
                col=column,
            )
            figure.add_scatter(
                x=epochs,
                y=mean,
                name=strategy,
                line={"color": colour, "dash": DASHES.get(pruner, "dashdot"), "width": 2},
                legendgroup=strategy,
                showlegend=strategy not in shown,
                row=1,
                col=column,
            )
            shown.add(strategy)
    figure.update_xaxes(title="epochs trained by all workers")
    figure.update_yaxes(title="mean normalised regret", col=1)
    figure.update_layout(template="plotly_white", width=200 + 450 * len(families), height=500)
    if path.suffix == ".svg":
        path.write_bytes(_as_svg(figure))
    else:
        figure.write_html(path)


def _as_svg(figure: Any) -> bytes:
    """Let Chromium draw it, as the dashboard's test does: no other dependency is needed."""
    from playwright.sync_api import sync_playwright

    browser = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
    size = {"format": "svg", "width": figure.layout.width, "height": figure.layout.height}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_file = Path(folder) / "figure.html"
        figure.write_html(page_file, div_id="figure")
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page()
        page.goto(page_file.as_uri())
        url: str = page.evaluate("size => Plotly.toImage('figure', size)", size)
        chromium.close()
    from urllib.parse import unquote

    header, _, content = url.partition(",")
    return base64.b64decode(content) if header.endswith("base64") else unquote(content).encode()
