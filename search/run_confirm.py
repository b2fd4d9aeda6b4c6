"""`hpsearch confirm`: the best configurations again with new seeds, and which of them wins."""

from collections.abc import Sequence

from search.confirm import Retraining, judge, missing, plan, prepare_confirmation
from search.draw import offer_export
from search.export import any_device
from search.objective import load_objective
from search.prepare import Prepared, join
from search.run import (
    DEFAULT_OPTIONS,
    Launcher,
    RunOptions,
    announce,
    run_workers,
    stopped,
    unless_stopped,
)
from search.run_export import export_confirmed
from search.stop import signals_as_before
from search.terminal import SafeConsole
from studies.artifacts import CONFIRMED, kept_evaluation
from studies.checkpoints import CheckpointDirectory, open_checkpoints
from studies.confirmation import Confirmation, TestResult, spread
from studies.ownership import OwnedStorage
from studies.study import OpenedStudy, check_objective, open_study


@signals_as_before()
def confirm_study(
    storage: OwnedStorage,
    name: str,
    options: RunOptions = DEFAULT_OPTIONS,
    top: int = 5,
    seeds: int = 3,
    source: str | None = None,
    trusted_objective: str | None = None,
) -> int:
    """Run `hpsearch confirm`: train the best configurations again, judge them, export the winner.

    Args:
        top: how many of the best configurations.
        seeds: how often each is trained again.
        source: where this machine has the data, if not where the study says.
        trusted_objective: that of the study file, if STUDY was one; what only the database names
            is not imported.

    Returns:
        The exit code: 0, 1 if a retraining failed, 128 + signal if interrupted.

    Raises:
        StorageLost: the storage has not answered for too long.
        UserError: no such study, no complete trial, an objective that is not trusted, or the data
            here are not those of the study.
    """
    opened = open_study(name, storage)
    check_objective(opened.config, trusted_objective)
    retrainings = plan(opened, top, seeds)
    launcher = Launcher.of(storage, options)
    searched = join(opened, options.root, source)
    load_objective(searched.opened.config.trial.objective)
    prepared = prepare_confirmation(storage, searched, retrainings)
    checkpoints = open_checkpoints(prepared.opened, options.root, options.checkpoints)
    announce(launcher.console, prepared, storage.url)
    launcher.interruptions.install()

    def retrain() -> int:
        troubles: list[str] = []
        if missing(prepared.opened, retrainings):
            here = source or prepared.opened.config.data.source
            troubles = run_workers(launcher, prepared.opened, here)
        for trouble in troubles:
            launcher.console.print(trouble, style="red")
        launcher.interruptions.raises = True
        if launcher.interruptions.received:
            return stopped(launcher)
        lacking = launcher.patience.call(lambda: missing(prepared.opened, retrainings))
        if lacking:
            launcher.console.print(
                f"{lacking} of {len(retrainings)} retrainings failed; to repeat them: "
                f"{options.command}",
            )
            return 1
        launcher.patience.call(
            lambda: _finish_confirmation(
                launcher.console, searched.opened, prepared, checkpoints, options, retrainings
            )
        )
        return 0

    return unless_stopped(launcher, retrain)


def _finish_confirmation(
    console: SafeConsole,
    searched: OpenedStudy,
    prepared: Prepared,
    checkpoints: CheckpointDirectory,
    options: RunOptions,
    retrainings: Sequence[Retraining],
) -> None:
    device = any_device()
    confirmation = judge(searched, prepared, retrainings, checkpoints, device)
    output = searched.directory(options.root) / CONFIRMED
    kept = kept_evaluation(searched, options.root)
    export_confirmed(prepared, confirmation, checkpoints, output, kept, device)
    offer_export(searched, output)
    console.print(describe_confirmation(confirmation))
    console.print(f"model: {output}")
    console.print(f"  to use it: hpsearch predict {output} IMAGE...")


def describe_confirmation(confirmation: Confirmation) -> str:
    """What retraining has shown, for people."""

    winner = confirmation.winner
    several = f"{confirmation.seeds} seeds (mean ± standard deviation)"
    over = several if confirmation.seeds > 1 else "1 seed, too few for an interval"
    lines = [f"validation accuracy over {over}:"]
    for item in confirmation.candidates:
        claim = "" if item.claimed is None else f", the search had claimed {item.claimed:.2%}"
        lost = f" ({item.diverged} diverged, counted as 0)" if item.diverged else ""
        lines.append(f"  trial {item.trial}: {spread(item.mean, item.std)}{lost}{claim}")
    lines.append(f"confirmed: trial {winner.trial}{confirmation.doubt}")
    if confirmation.lead:
        lead = confirmation.lead
        lines.append(f"  above trial {lead.trial} by {_interval(lead.difference)}")
    if winner.claimed is not None:
        lines.append(
            f"  the search had claimed {100 * abs(winner.claimed - winner.mean):.2f} points "
            f"{'more' if winner.claimed >= winner.mean else 'less'}"
        )

    def on_test(result: TestResult) -> str:
        seeds = result.out_of(confirmation.seeds)
        return f"test accuracy {spread(result.mean, result.std)}{f' ({seeds})' if seeds else ''}"

    if confirmation.test:
        lines.append(f"  {on_test(confirmation.test)}")
    if confirmation.baseline:
        lines.append(f"  the notebook's configuration: {on_test(confirmation.baseline)}")
    if confirmation.difference:
        lines.append(f"  difference {_interval(confirmation.difference)}")
    return "\n".join(lines)


def _interval(difference: tuple[float, float, float]) -> str:
    mean, low, high = (100 * value for value in difference)
    return f"{mean:+.2f} points, 95% confidence interval {low:+.2f} to {high:+.2f}"
