"""Runs docs/tour.ipynb and keeps what it shows: `python -m tests.tour`.

Needs nbclient, ipykernel and kaleido, which nothing else here does, and Chromium.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[1] / "docs" / "tour.ipynb"
DIGEST = "code_sha256"
"""In the notebook's metadata: of the code whose results are shown."""


def code_digest(notebook: Mapping[str, Any]) -> str:
    """SHA-256 over the source of its cells of code."""
    code = [cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return hashlib.sha256(json.dumps(["".join(source) for source in code]).encode()).hexdigest()


def main() -> None:
    import nbformat
    from nbclient import NotebookClient

    os.environ["PLOTLY_RENDERER"] = "png"
    os.environ["PYTHONWARNINGS"] = "ignore"  # They name folders of this machine.
    notebook = nbformat.read(FILE, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(notebook, resources=resources, record_timing=False).execute()
    notebook.metadata[DIGEST] = code_digest(notebook)
    nbformat.write(notebook, FILE)


if __name__ == "__main__":
    main()
