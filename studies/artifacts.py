"""The files of a study that optuna-dashboard lets people download.

They lie where the workers and `hpsearch run` have put them, once. An artifact's identity is a sum
of its file's name: what is read is looked up among the files that a study may show, and no path
comes from the network or the database.
"""

import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

from bottle import HTTPError
from optuna.storages import BaseStorage

from data.errors import UserError
from data.files import DEFAULT_ROOT
from studies.export import FILES
from studies.stores import WEIGHTS_NAME, Folder, Store, study_store
from studies.study import IDENTITY, OpenedStudy, open_study

EXPORTED = "best"
"""The folder of the exported model, in that of the study."""
CONFIRMED = "confirmed"
"""Likewise, that of the confirmed one: it is offered in place of the other."""
EVALUATED = "evaluation"
"""The folder of the last evaluation of its best model, likewise."""
EVALUATION = {"evaluation.html", "evaluation.json", "feature-maps.png", "mistakes.png"}
NONE = "null"
"""In place of a file that is not there any more."""
OF_STUDY = "artifacts:"
OF_TRIAL = "dashboard:artifacts:"
"""With the trial's identity; for files that are added to a trial that has ended."""
# No HTML: a page's scripts are not to run as the dashboard's. It is downloaded, and opened then.
KINDS = {".json": "application/json", ".md": "text/plain", ".png": "image/png"}

_ARTIFACT = re.compile(r"([0-9a-f]{8})-[0-9a-f]{16}")


def kept_evaluation(opened: OpenedStudy, root: Path) -> Path:
    """The `evaluation.json` that a study keeps. It may be missing."""
    return opened.directory(root) / EVALUATED / "evaluation.json"


def file_id(identity: str, name: str) -> str:
    """Of a study's file.

    Args:
        identity: of the study.
    """
    return f"{identity}-{sha256(name.encode()).hexdigest()[:16]}"


def trial_rows(
    opened: OpenedStudy, weights: Mapping[int, str], stored: Mapping[str, Any]
) -> dict[str, str]:
    """The attributes that offer the weights of trials, and take back what is not there any more.

    Args:
        weights: by the trial's identity, the name of its file.
        stored: the study's attributes so far, other than the user's.
    """
    rows = dict.fromkeys((key for key in stored if key.startswith(OF_TRIAL)), NONE)
    for trial_id, name in weights.items():
        identity = file_id(opened.identity, name)
        rows[f"{OF_TRIAL}{trial_id}:{identity}"] = _described(identity, name)
    return {key: value for key, value in rows.items() if stored.get(key) != value}


def study_rows(
    opened: OpenedStudy, names: Iterable[str], gone: Iterable[str] = ()
) -> dict[str, str]:
    """The attributes that offer files of the exported model or of an evaluation.

    Args:
        gone: those that are not there any more.
    """
    identities = {file_id(opened.identity, name): name for name in names}
    rows = {f"{OF_STUDY}{key}": _described(key, name) for key, name in identities.items()}
    return rows | {f"{OF_STUDY}{file_id(opened.identity, name)}": NONE for name in gone}


def _described(identity: str, name: str) -> str:
    kind = KINDS.get(Path(name).suffix, "application/octet-stream")
    fields = {"artifact_id": identity, "filename": name, "mimetype": kind, "encoding": None}
    return json.dumps(fields)


@dataclass(frozen=True, slots=True)
class StudyFiles:
    """An artifact store of Optuna's, for the dashboard, that reads these files and nothing else."""

    storage: BaseStorage
    root: Path = DEFAULT_ROOT
    """The directory for what a run makes."""
    place: str | None = None
    """Where checkpoints are instead; see `open_store`."""

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """
        Raises:
            HTTPError: there is no such file here.
        """
        try:
            for identity, store, name in self._offered(artifact_id):
                if identity == artifact_id:
                    return io.BytesIO(store.read(name))
        except (UserError, OSError) as error:
            raise HTTPError(404, f"The file cannot be read: {error}") from error
        raise HTTPError(
            404,
            "This file is not here any more; or it is on another machine than the dashboard, which "
            "has to be given the workers' --directory and --checkpoints.",
        )

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        raise HTTPError(403, "Files are added by workers alone.")

    def remove(self, artifact_id: str) -> None:
        """Nothing: who deletes a study in the dashboard keeps its files."""

    def _offered(self, artifact_id: str) -> Iterator[tuple[str, Store, str]]:
        """All files of the study that this one is of."""
        match = _ARTIFACT.fullmatch(artifact_id)
        for study in self.storage.get_all_studies() if match else ():
            if match and study.user_attrs.get(IDENTITY) == match[1]:
                # It checks what the folder's name is made of.
                opened = open_study(study.study_name, self.storage)
                folder = opened.directory(self.root)
                checkpoints = study_store(folder, self.place, to_write=False)
                shown: list[tuple[Store, str]] = [
                    (checkpoints, name)
                    for name in checkpoints.names()
                    if WEIGHTS_NAME.fullmatch(name)
                ]
                best = CONFIRMED if Folder(folder / CONFIRMED).names() else EXPORTED
                for part, known in ((best, FILES), (EVALUATED, EVALUATION)):
                    of_part = Folder(folder / part)
                    shown += [(of_part, name) for name in of_part.names() if name in known]
                for store, name in shown:
                    yield file_id(opened.identity, name), store, name
