"""The figures of a study that optuna-dashboard shows among its own.

Each is an attribute of the study, written at once; the dashboard's own function would cut it into
hundreds, which a reader may find half old and half new.
"""

from collections.abc import Sequence

import plotly.graph_objects as go
from optuna.trial import FrozenTrial

from studies import figures
from studies.analysis import MOST_DRAWN, importances, progress, which_parameters
from studies.results import TrialRecord, rank, utc_now
from studies.study import OpenedStudy
from studies.timeline import timeline

FEWEST_TRIALS = 5
"""That have ended; what figures of fewer would say, the dashboard's own do."""
MOST_CURVES = 50
"""Of the best trials; the dashboard draws all of them."""
MOST_RUNS = 300
"""The last ones. With every look at the page, the whole figure is read and sent."""


def figure_rows(
    opened: OpenedStudy, trials: Sequence[FrozenTrial], baseline: TrialRecord | None
) -> dict[str, str]:
    """The figures as the dashboard has them: attribute to JSON. None while there are few trials.

    Args:
        trials: all of the study.
        baseline: the trial of the notebook's configuration, if there is one.
    """
    if sum(trial.state.is_finished() for trial in trials) < FEWEST_TRIALS:
        return {}
    drawn = _figures(opened, trials, baseline)
    return {f"dashboard:plot_data:{name}:0": figure.to_json() for name, figure in drawn.items()}


def _figures(
    opened: OpenedStudy, trials: Sequence[FrozenTrial], baseline: TrialRecord | None
) -> dict[str, go.Figure]:
    records = opened.records_of(trials)
    ranked = rank(records)
    best = ranked[0] if ranked else None
    by_importance = importances(trials, opened.config.space)
    runs = timeline(records, utc_now())[-MOST_RUNS:]
    found = {}
    if ranked:
        found["best-so-far"] = _titled(
            figures.best_so_far(progress(records), "seconds", baseline), "Best so far"
        )
        found["learning-curves"] = _titled(
            figures.learning_curves(ranked[:MOST_CURVES], best, baseline),
            "Learning curves of the best trials",
        )
    if by_importance:
        # A card is narrow.
        gap = "<br>" if len(by_importance) > MOST_DRAWN else " "
        found["importance"] = _titled(
            figures.importance_bars(dict(list(by_importance.items())[:MOST_DRAWN])),
            f"Importance of {which_parameters(len(by_importance))},{gap}pruned trials counted too",
        )
    if runs:
        found["workers"] = _titled(figures.timeline_bars(runs), "Workers: who ran what when")
    return found


def _titled(figure: go.Figure, title: str) -> go.Figure:
    """The same, to fill a card of the dashboard, which is white or black."""
    # Else Plotly measures each label, to hide those beyond the card's edge, where none are.
    figure.update_xaxes(ticklabeloverflow="allow")
    figure.update_yaxes(ticklabeloverflow="allow")
    figure.update_layout(
        title={"text": title, "x": 0.5, "y": 0.98, "yanchor": "top", "font": {"size": 16}},
        height=None,
        margin={"t": 80},
        paper_bgcolor="white",
        plot_bgcolor="white",
    )
    return figure
