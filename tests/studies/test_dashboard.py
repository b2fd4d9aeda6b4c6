import json
import threading
import urllib.error
import urllib.request
from pathlib import Path
from queue import Queue

import optuna
import pytest

from studies.dashboard import application, serve
from studies.storage import open_storage


def start(tmp_path: Path, allow_edits: bool) -> str:
    storage = open_storage(f"sqlite:///{tmp_path / 'a.db'}", create=True)
    optuna.create_study(study_name="shown", storage=storage)
    port: Queue[int] = Queue()
    app = application(storage, allow_edits)
    threading.Thread(target=serve, args=(app, "127.0.0.1", 0, port.put), daemon=True).start()
    return f"http://127.0.0.1:{port.get(timeout=10)}"


def delete_study(address: str) -> int:
    request = urllib.request.Request(f"{address}/api/studies/1", method="DELETE", data=b"{}")
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=10) as response:
        return int(response.status)


def study_names(address: str) -> list[str]:
    with urllib.request.urlopen(f"{address}/api/studies", timeout=10) as response:
        summaries = json.load(response)["study_summaries"]
    return [summary["study_name"] for summary in summaries]


def test_the_dashboard_shows_but_does_not_change(tmp_path: Path) -> None:
    address = start(tmp_path, allow_edits=False)
    with pytest.raises(urllib.error.HTTPError, match="403"):
        delete_study(address)
    assert study_names(address) == ["shown"]


def test_edits_can_be_allowed(tmp_path: Path) -> None:
    address = start(tmp_path, allow_edits=True)
    assert delete_study(address) == 204
    assert study_names(address) == []
