import math

import pytest

from studies.findings import at_their_ends
from tests.studies.trials import found, trial

COMPLETE = [
    trial(0, "complete", 0.3, 0.2, 0.5, 0.6),
    trial(1, "complete", 0.2, 0.4, 0.4, 0.4),
    trial(2, "complete", math.nan, 0.1, 0.6, 0.7),
]


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        ((0.1,), 0.1 + (0.3 + 0.2) / 2),  # The third had no number by then.
        ((0.1, 0.2), 0.2 + 0.3),  # Gained 0.3, 0 and 0.6: a median.
        ((0.1, 0.6), 0.7),  # The best.
        ((0.1, 0.75), 0.75),
    ],
)
def test_a_pruned_trial_counts_as_if_it_had_gone_on_as_others_did(
    accuracies: tuple[float, ...], expected: float
) -> None:
    pruned = trial(3, "pruned", *accuracies)
    diverged, running = trial(4, "diverged", 0.1), trial(5, "running", 0.1)
    records = [*COMPLETE, pruned, diverged, running]
    at_end = at_their_ends(records)
    assert at_end[3].value == pytest.approx(expected)
    assert [*at_end[:3], *at_end[4:]] == [*COMPLETE, diverged, running]


def test_without_a_complete_trial_a_pruned_one_counts_with_what_it_had() -> None:
    records = [trial(0, "pruned", 0.1, 0.2), trial(1, "pruned", math.nan)]
    assert at_their_ends(records) == records


def test_the_surface_is_brightest_where_good_trials_are_and_not_where_none_was_pruned() -> None:
    """As in a short search: the notebook's corner alone is without pruned trials."""
    space = {name: {"low": 0.0, "high": 1.0} for name in ("x", "y")}
    trials: list[tuple[str, dict[str, float], list[float]]] = [
        ("complete", {"x": 0.0, "y": 0.0}, [0.3, 0.4, 0.46])
    ]
    for number in range(12):
        at = {"x": 0.7 + 0.02 * (number % 4), "y": 0.7 + 0.02 * (number // 4)}
        trials.append(("pruned", at, [0.25]) if number % 3 else ("complete", at, [0.3, 0.5, 0.6]))
    settings = {"name": "a", "space": space, "trial": {"objective": "own:train"}}
    surface = found(settings, trials).surface
    assert surface is not None
    assert surface.values[0][0] == pytest.approx(0.46, abs=0.01)
    assert max(value for row in surface.values for value in row if value is not None) > 0.5
