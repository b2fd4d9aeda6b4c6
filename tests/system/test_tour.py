"""`docs/tour.ipynb`: its code works, and what it shows is of a run of that code.

What it shows is made anew with nbclient, ipykernel, kaleido and Chromium installed:
PLOTLY_RENDERER=png jupyter execute --inplace docs/tour.ipynb
"""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from studies import open_study

FILE = Path(__file__).parents[2] / "docs" / "tour.ipynb"
CODE = [cell for cell in json.loads(FILE.read_text())["cells"] if cell["cell_type"] == "code"]


def test_its_code_searches_looks_exports_predicts_and_evaluates(
    few_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All in this process but the worker, on a twelfth of its images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HPSEARCH_STORAGE", raising=False)
    smaller = f'"data.source": {json.dumps(str(few_images))}, "space.width": 4'
    interrupt = signal.getsignal(signal.SIGINT)
    names: dict[str, Any] = {}
    for cell in CODE:
        exec("".join(cell["source"]).replace('"space.width": 4', smaller), names)
    assert signal.getsignal(signal.SIGINT) is interrupt
    study = open_study("tour")
    assert study.config.data.source == str(few_images)
    assert study.summary.finished == 4
    assert names["exported"].best.number == study.summary.best.number  # type: ignore[union-attr]
    assert names["evaluation"].test == names["exported"].test
    assert len(names["evaluation"].features) == 5


def test_what_it_shows_is_of_a_run_from_its_first_cell_to_its_last_and_small() -> None:
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    shown = [output for cell in CODE for output in cell["outputs"]]
    assert {output["output_type"] for output in shown} <= {
        "stream",
        "display_data",
        "execute_result",
    }
    assert sum("image/png" in output.get("data", {}) for output in shown) == 3
    assert "plotly" not in json.dumps(shown)
    assert FILE.stat().st_size < 300_000
