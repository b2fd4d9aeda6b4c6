"""What `docs/python.md` shows: each piece, run in this process on one small finished study."""

import re
import signal
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from PIL import Image

import search
import studies
from studies import open_storage, open_study
from studies.confirmation import confirmation_of
from tests.system.trained import trained_study

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.usefixtures("signals")
def test_each_piece_of_python_does_what_it_says(
    few_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HPSEARCH_STORAGE", raising=False)
    curve = trained_study(open_storage(create=True), "flowers", str(few_images), Path("var"))
    config = open_study("flowers").config.model_dump(mode="json", exclude_none=True)
    Path("flowers.toml").write_text(tomli_w.dumps(config))
    Image.open(next(few_images.glob("test/cat/*"))).resize((50, 40)).save("photo.jpg")

    names: dict[str, Any] = {}
    said = StringIO()
    codes = []
    with redirect_stdout(said):
        for snippet in SNIPPETS:
            before = signal.getsignal(signal.SIGINT)
            exec(snippet, names)
            if "exit_code" in snippet:
                codes.append(names["exit_code"])
                if "run_worker" not in snippet:
                    assert signal.getsignal(signal.SIGINT) is before
    text = said.getvalue()

    assert "1 trials finished\n" in text
    assert f"0 {max(curve)} " in text
    assert "['flowers']" in text
    assert "trial 1 is waiting for a worker" in text
    assert codes == [0, 0, 0]
    assert names["file"] == Path("flowers-report.html")
    assert names["file"].is_file()
    assert names["exported"].test.plain == names["evaluation"].test.plain
    assert names["prediction"].label in names["classifier"].classes
    assert "macro F1" in Path("best/README.md").read_text()
    assert Path("best-evaluation/evaluation.json").is_file()
    confirmation = confirmation_of(open_study("flowers"))
    assert confirmation is not None
    assert confirmation.winner.trial == 0
    assert names["replay"].recorded == tuple(curve)


def test_what_is_offered_is_there() -> None:
    for package in (studies, search):
        for name in package.PLACES:
            assert getattr(package, name).__doc__
    with pytest.raises(AttributeError, match="module 'search' has no attribute 'nothing'"):
        _ = vars(search)["__getattr__"]("nothing")
