"""Everything of a study that outlasts a process: its file, its storage, checkpoints, results."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from studies.config import load_study_file as load_study_file
    from studies.config import write_template as write_template
    from studies.results import rank as rank
    from studies.storage import open_storage as open_storage
    from studies.study import best_record as best_record
    from studies.study import open_study as open_study
    from studies.study import study_names as study_names

# Imported when it is asked for: the command's help needs none of it.
PLACES = {
    "best_record": "studies.study",
    "load_study_file": "studies.config",
    "open_storage": "studies.storage",
    "open_study": "studies.study",
    "rank": "studies.results",
    "study_names": "studies.study",
    "write_template": "studies.config",
}

if not TYPE_CHECKING:  # Else a name that is not there would pass.

    def __getattr__(name: str) -> Any:
        if name not in PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(PLACES[name]), name)
