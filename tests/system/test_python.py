"""What `docs/python.md` shows: each piece, run in this process on one small finished study."""

import ast
import inspect
import re
import signal
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest
import tomli_w
from PIL import Image

import data
import model
import search
import studies
from studies import load_study_file, open_storage, open_study
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
    Path("photos").mkdir()
    for name in ("photo.jpg", "photos/0.jpg"):
        Image.open(next(few_images.glob("test/cat/*"))).resize((50, 40)).save(name)

    names: dict[str, Any] = {}
    said = StringIO()
    codes = []
    with redirect_stdout(said):
        for snippet in SNIPPETS:
            before = signal.getsignal(signal.SIGINT)
            exec(snippet.replace('"space.width": 8', '"space.width": 4'), names)
            if "write_template" in snippet:
                assert load_study_file("flowers.toml").name == "flowers"
                # In place of the template that of the study that is there, which takes no time.
                Path("flowers.toml").write_text(tomli_w.dumps(config))
            if "exit_code" in snippet:
                codes.append(names["exit_code"])
                if "run_worker" not in snippet:
                    assert signal.getsignal(signal.SIGINT) is before
    text = said.getvalue()

    assert "1 trials finished\n" in text
    assert f"0 {max(curve)} " in text
    assert "['flowers']" in text
    assert "trial 1 is waiting for a worker" in text
    assert codes == [0, 0, 0, 0]
    assert names["file"] == Path("flowers-report.html")
    assert names["file"].is_file()
    assert names["exported"].test.plain == names["evaluation"].test.plain
    inspect.signature(search.export_study).bind("study", "folder", graphs=names["graphs"])
    prediction = names["prediction"]
    assert prediction.label in names["classifier"].classes
    assert f"\nphotos/0.jpg,{prediction.label},{prediction.probability}\n" in text
    assert "macro F1" in Path("best/README.md").read_text()
    assert Path("best-evaluation/evaluation.json").is_file()
    confirmation = confirmation_of(open_study("flowers"))
    assert confirmation is not None
    assert confirmation.winner.trial == 0
    assert names["replay"].recorded == tuple(curve)
    answers: list[str] = []
    environment = {"PATH_INFO": "/api/studies"}
    setup_testing_defaults(environment)
    body = b"".join(names["app"](environment, lambda status, *_: answers.append(status)))
    assert (answers, b"flowers" in body) == (["200 OK"], True)


def imported_for_types(package: ModuleType) -> Iterator[tuple[str, str]]:
    """What type checkers see of a package: name and module."""
    types, _ = [item for item in ast.parse(inspect.getsource(package)).body if type(item) is ast.If]
    for item in types.body:
        assert isinstance(item, ast.ImportFrom)
        for name in item.names:
            assert name.asname == name.name
            yield name.name, str(item.module)


def test_the_types_of_all_packages_are_for_who_uses_them() -> None:
    for package in (data, model, search, studies):
        assert Path(inspect.getfile(package)).with_name("py.typed").is_file()


def test_what_is_offered_is_there() -> None:
    for package in (studies, search):
        assert dict(imported_for_types(package)) == package.PLACES
        for name in package.PLACES:
            assert getattr(package, name).__doc__
            assert re.search(rf"\b{name}\b", PAGE.read_text())
    with pytest.raises(AttributeError, match="module 'search' has no attribute 'nothing'"):
        _ = vars(search)["__getattr__"]("nothing")
