"""What retraining the best configurations of a study has shown, as it is kept."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from data.errors import UserError
from studies.study import OpenedStudy, exists, open_study

# Attributes of the confirming study.
CONFIRMATION = "confirmation"
SEARCHED = "searched"
"""The identity of the study that it confirms."""


def check_is_search(opened: OpenedStudy) -> None:
    """Refuse a study of retrainings, whose trials are for `hpsearch confirm` to choose.

    Raises:
        UserError: it confirms another one.
    """
    if SEARCHED in opened.study.user_attrs:
        name = opened.config.name
        search = name.removesuffix(confirming_name(""))
        raise UserError(
            f"study {name!r} is the confirmation of {search!r}; for more retrainings: "
            f"hpsearch confirm {search} with a higher --top or --seeds"
        )


@dataclass(frozen=True, slots=True)
class Candidate:
    """A configuration that was trained with several seeds."""

    trial: int
    """Its number in the search."""
    claimed: float | None
    """What the search reported for it: validation accuracy in [0, 1]; None if it was pruned."""
    mean: float
    """Validation accuracy over the seeds. A retraining that diverged counts as 0."""
    std: float | None
    """Sample standard deviation; None of a single seed."""
    diverged: int
    """With so many of the seeds."""


@dataclass(frozen=True, slots=True)
class TestResult:
    """Accuracy on the test images, in [0, 1], over the seeds whose weights are there."""

    mean: float
    std: float | None
    seeds: int
    lost: int = 0
    """Seeds that did not diverge, but whose weights are damaged or gone."""

    def out_of(self, seeds: int) -> str:
        """What became of so many seeds, or nothing if all have their weights."""
        diverged = seeds - self.seeds - self.lost
        reasons = [f"{diverged} diverged"] if diverged else []
        reasons += [f"the weights of {self.lost} are lost"] if self.lost else []
        return "; ".join([f"{self.seeds} of {seeds} seeds", *reasons]) if reasons else ""


@dataclass(frozen=True, slots=True)
class Lead:
    """How far the winner is ahead of the second, in validation accuracy."""

    trial: int
    """The second's number in the search."""
    difference: tuple[float, float, float]
    """Of the means, and its confidence interval (Welch)."""


@dataclass(frozen=True, slots=True)
class Confirmation:
    """What the retrainings showed."""

    candidates: tuple[Candidate, ...]
    """Best first; the notebook's configuration is among them."""
    winner: Candidate
    trial: int
    """The winner's best retraining, whose model is exported: its number in the confirming study."""
    parameters: Mapping[str, Any]
    seeds: int
    test: TestResult | None
    """None for an objective of the user's own."""
    baseline: TestResult | None
    """Of the notebook's configuration, if the search had it and it is not the winner."""
    difference: tuple[float, float, float] | None
    """Winner's test accuracy minus the baseline's, and its confidence interval (Welch).

    None if either lost a seed: the mean of those that are left is better than what is expected."""
    lead: Lead | None = None
    """None of one seed or configuration, if either diverged, and in what older versions stored."""

    @property
    def headline(self) -> str:
        """What it came to, in a line."""
        seeds = f"{self.seeds} seeds" if self.seeds > 1 else "1 seed"
        reached = spread(self.winner.mean, self.winner.std)
        return (
            f"confirmed: trial {self.winner.trial}, {reached} validation accuracy over {seeds}"
            f"{self.doubt}"
        )

    @property
    def doubt(self) -> str:
        """Whom the winner may have beaten by chance, in words that follow its result."""
        if self.lead and self.lead.difference[1] <= 0:
            return f", within the noise of trial {self.lead.trial}"
        return ""


def spread(mean: float, std: float | None) -> str:
    """Mean and standard deviation of accuracies, for people."""
    return f"{mean:.2%}" if std is None else f"{mean:.2%} ± {std:.2%}"


@dataclass(frozen=True, slots=True)
class Stored:
    """A confirmation as it is kept, in JSON."""

    asked: list[list[int]]
    """Trial and seed of each retraining, sorted."""
    result: Confirmation


def confirming_name(name: str) -> str:
    """The name of the study that confirms a study."""
    return f"{name}-confirm"


def confirmation_of(opened: OpenedStudy) -> Confirmation | None:
    """The confirmation of a study, if there is one; not of another study that had its name.

    Raises:
        UserError: what is stored is not what hpsearch stores.
    """
    name = confirming_name(opened.config.name)
    if not exists(opened.storage, name):
        return None
    confirming = open_study(name, opened.storage)
    if confirming.study.user_attrs.get(SEARCHED) != opened.identity:
        return None
    stored = stored_in(confirming)
    return stored.result if stored else None


def mentioned(opened: OpenedStudy) -> Confirmation | None:
    """The confirmation of a study for who only mentions it: one that cannot be read is none."""
    try:
        return confirmation_of(opened)
    except UserError:
        return None


def shown_by(confirming: OpenedStudy) -> Confirmation | None:
    """What a confirming study has shown, for who only mentions it: see `mentioned`."""
    try:
        stored = stored_in(confirming)
    except UserError:
        return None
    return stored.result if stored else None


def stored_in(confirming: OpenedStudy) -> Stored | None:
    """What is kept in a confirming study, once its retrainings have been judged.

    Raises:
        UserError: it is not what hpsearch stores.
    """
    stored = confirming.study.user_attrs.get(CONFIRMATION)
    if stored is None:
        return None
    try:
        return TypeAdapter(Stored).validate_python(stored)
    except ValidationError as error:
        raise UserError(
            f"study {confirming.config.name!r}: what is stored as its {CONFIRMATION} was not "
            "written by hpsearch"
        ) from error
