"""Which trials are exported: the confirmed one, the best, or one that the user names."""

from collections.abc import Sequence
from dataclasses import dataclass

from data.errors import UserError
from studies.confirmation import Confirmation, confirmation_of, confirming_name
from studies.results import CONFIRMS, TrialRecord, rank, record
from studies.study import OpenedStudy, open_study, ranked_records


@dataclass(frozen=True, slots=True)
class Chosen:
    """The trials of a study whose models are wanted."""

    study: str
    ranked: Sequence[TrialRecord]
    """Best first. If a checkpoint cannot be used, the next is taken."""
    count: int | None = None
    """How many; None is the first, in a folder that holds no others."""
    confirmation: Confirmation | None = None
    chosen_as: str = "best: "


def choose(opened: OpenedStudy, best: int | None, trial: int | None) -> Chosen:
    """Which trials are to be exported, and from which study: the search, or its confirmation.

    Raises:
        UserError: none is complete, or the one that is wanted is not.
    """
    name = opened.config.name
    if trial is not None:
        return Chosen(name, [_complete(opened, trial)], chosen_as="")
    ranked = ranked_records(opened)
    if best is not None:
        if len(ranked) < best:
            raise UserError(
                f"study {name!r}: complete trials: {len(ranked)}; give --best {len(ranked)} or "
                "fewer"
            )
        return Chosen(name, ranked, best)
    confirmation = confirmation_of(opened)
    if confirmation is None:
        return Chosen(name, ranked)
    confirming = open_study(confirming_name(name), opened.storage)
    return Chosen(
        confirming.config.name, of_winner(confirming, confirmation), confirmation=confirmation
    )


def _complete(opened: OpenedStudy, number: int) -> TrialRecord:
    trials = opened.study.get_trials(deepcopy=False)
    where = f"study {opened.config.name!r}"
    if number >= len(trials):
        there = f"0 to {len(trials) - 1}" if trials else "none yet"
        raise UserError(f"{where}: no trial {number}; there: {there}")
    item = record(trials[number])
    if item.state != "complete":
        raise UserError(
            f"{where}: trial {number} is {item.state}; only those that are complete have a model: "
            f"hpsearch status {opened.config.name}"
        )
    return item


def of_winner(confirming: OpenedStudy, confirmation: Confirmation) -> list[TrialRecord]:
    """The winner's retrainings, the best first."""
    trials = confirming.study.get_trials(deepcopy=False)
    others = [
        record(trial)
        for trial in trials
        if trial.user_attrs.get(CONFIRMS) == confirmation.winner.trial
        and trial.number != confirmation.trial
    ]
    return [record(trials[confirmation.trial]), *rank(others)]
