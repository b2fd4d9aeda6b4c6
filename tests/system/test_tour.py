"""`docs/tour.ipynb`: its code works, and what it shows is of a run of that code.

`python -m tests.tour` makes it anew.
"""

import json
import re
import signal
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from model.hyperparameters import REFERENCE
from studies import open_study
from tests.tour import DIGEST, FILE, code_digest

NOTEBOOK = json.loads(FILE.read_text())
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def form(text: str) -> str:
    """What is printed, whatever its numbers are."""
    return re.sub(r"\d+(\.\d+)?", "0", text)


def stored(cell: dict[str, Any]) -> str:
    """What the notebook shows as printed by a cell."""
    shown = [item for item in cell["outputs"] if item.get("name") == "stdout"]
    return "".join("".join(item["text"]) for item in shown)


def test_its_code_searches_looks_exports_predicts_and_evaluates(
    few_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All in this process but the worker, on a twelfth of its images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HPSEARCH_STORAGE", raising=False)
    smaller = f'"data.source": {json.dumps(str(few_images))}, "space.width": 4'
    interrupt = signal.getsignal(signal.SIGINT)
    names: dict[str, Any] = {}
    compared = 0
    for cell in CODE:
        code, printed = "".join(cell["source"]), StringIO()
        with redirect_stdout(printed):
            exec(code.replace('"space.width": 4', smaller), names)
        # What these two print has one form, whatever was learnt.
        if "export_study" in code or "evaluate_models" in code:
            assert form(printed.getvalue()) == form(stored(cell)), "python -m tests.tour"
            compared += 1
    assert compared == 2
    assert signal.getsignal(signal.SIGINT) is interrupt
    study = open_study("tour")
    assert study.config.data.source == str(few_images)
    assert study.summary.finished == 4
    assert names["exported"].best.number == study.summary.best.number  # type: ignore[union-attr]
    assert names["evaluation"].test == names["exported"].test
    assert len(names["evaluation"].features) == 5


def test_what_it_shows_is_of_the_code_that_it_has() -> None:
    assert NOTEBOOK["metadata"][DIGEST] == code_digest(NOTEBOOK), "python -m tests.tour"


def test_what_it_shows_is_of_the_reference_that_ships() -> None:
    (lines,) = (stored(cell) for cell in CODE if "rank(study.records)" in "".join(cell["source"]))
    (shown,) = re.findall(r"^trial 1: .*", lines, re.MULTILINE)
    settings = dict(item.split(" ") for item in shown.split("   ")[1].split(", "))
    known = {name: str(value) for name, value in REFERENCE.items() if name in settings}
    assert settings == settings | known, "python -m tests.tour"
    assert len(known) > 5


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
