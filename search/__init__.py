"""The search: what to try, trying it, and the processes that do."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search.enqueue import enqueue_trial as enqueue_trial
    from search.finished import Graphs as Graphs
    from search.replay import replay_trial as replay_trial
    from search.run import RunOptions as RunOptions
    from search.run import WorkerOptions as WorkerOptions
    from search.run import run_study as run_study
    from search.run import run_worker as run_worker
    from search.run_confirm import confirm_study as confirm_study
    from search.run_evaluate import evaluate_models as evaluate_models
    from search.run_export import export_study as export_study
    from search.run_predict import predict_images as predict_images
    from search.run_report import report_study as report_study

# As in `studies`.
PLACES = {
    "Graphs": "search.finished",
    "RunOptions": "search.run",
    "WorkerOptions": "search.run",
    "confirm_study": "search.run_confirm",
    "enqueue_trial": "search.enqueue",
    "evaluate_models": "search.run_evaluate",
    "export_study": "search.run_export",
    "predict_images": "search.run_predict",
    "replay_trial": "search.replay",
    "report_study": "search.run_report",
    "run_study": "search.run",
    "run_worker": "search.run",
}

if not TYPE_CHECKING:  # Else a name that is not there would pass.

    def __getattr__(name: str) -> Any:
        if name not in PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(PLACES[name]), name)
