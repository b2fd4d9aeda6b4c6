"""What README.md and docs/*.md tell people to type is run, in its order, on small studies.

Those that ship are made small, and places are replaced by what a test has: its own folder, database
and bucket. The pieces of docs/python.md are run by `test_python`.
"""

import argparse
import importlib
import os
import re
import shlex
import shutil
import sys
import tomllib
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

import pytest
import tomli_w
import typer.main
from typer.testing import CliRunner

from search.cli import app
from studies import config
from tests.conftest import Postgres
from tests.system.processes import running

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]

NOT_RUN_HERE = {
    "make ": "a search, and this suite; that it has the targets is tested in test_readme",
    "apt-get ": "is Debian's",
    "ssh ": "needs a second machine",
    "tensorboard ": "is run in tests/search/test_tensorboard.py, on a trial's events",
    "cp .env.example ": "of Docker, as the next",
    "docker compose ": "needs Docker; tests/system/test_compose.py reads the files",
    "hpsearch run cifar10 --engine ray ": "tests/system/test_ray.py, on a Ray of its own",
    "sbatch ": "tests/test_examples.py, with a Slurm that only notes its calls",
    "kubectl ": "needs Kubernetes; tests/test_examples.py reads the file",
}
PROGRAM = re.compile(
    r"(nohup |[A-Z_]+=\S+ )?(hpsearch|python|pip|export|"
    + "|".join(map(re.escape, {name.split()[0] for name in NOT_RUN_HERE}))
    + r") "
)
"""What a command in the middle of a sentence begins with."""
TOKEN = re.compile(
    r"^```(?P<language>\w*)\n(?P<fenced>[^`]*)^```|^    (?P<line>.+)$|`(?P<inline>[^`]+)`"
    r"|^#+ (?P<heading>.+)$",
    re.MULTILINE,
)
# Where the documents leave a word to the reader, or name what a test has not.
WORDS = {
    "STUDY": "quickstart",
    "[STUDY]": "quickstart",
    "NAME": "quickstart",
    "DIR_OR_STUDY": "quickstart",
    "DIR": "best",
    "IMAGE...": "photo.jpg",
    "KEY=VALUE...": "learning_rate=0.05",
    "N": "0",
    "FILE": "figures.json",
    "FILE.toml": "other.toml",
    "10.0.0.5": "127.0.0.1",
}
TRIALS = 2
# What makes it short; of an option that is given twice, the last holds.
ADDED = {
    "run": ["--workers", "1", "--trials", str(TRIALS)],
    "run flowers.toml": ["--set", "space.width=4", "--set", "trial.epochs=1"],
    "run cifar10 --warm-start": ["--name", "warm"],
    "confirm": ["--workers", "1", "--top", "1", "--seeds", "1"],
    "dashboard": ["--port", "0"],
    "storage-proxy": ["--port", "0"],
}


def texts(page: Path) -> Iterator[tuple[str, str]]:
    """In their order: each `heading`, each piece of `python`, and each `command`."""
    for token in TOKEN.finditer(page.read_text()):
        if token["heading"]:
            yield "heading", token["heading"]
        elif token["language"] == "python":
            yield "python", token["fenced"]
        elif token["line"]:
            yield "command", token["line"].split("  #")[0].split(" # ")[0].strip()
        elif token["inline"]:
            text = " ".join(token["inline"].split())
            if PROGRAM.match(text):
                yield "command", text


def is_run_here(command: str) -> bool:
    return not any(command.startswith(start) for start in NOT_RUN_HERE)


def only_names(words: list[str]) -> bool:
    """Whether it is a word in a sentence: a command without the arguments that it must have."""
    return len(words) == 1 and any(item.required for item in COMMANDS[words[0]].params)


class Parsed(Exception):
    """Of a benchmark's arguments: they are right."""


@dataclass
class Reader:
    """Types what it reads."""

    monkeypatch: pytest.MonkeyPatch
    places: dict[str, Callable[[], str]]
    """Of what a document names, what there is in its stead."""
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    """As exported in this section."""
    servers: ExitStack = field(default_factory=ExitStack)
    """That this section has started."""
    done: set[tuple[object, ...]] = field(default_factory=set)

    def begin_section(self) -> None:
        self.servers.close()
        for name in self.environment:
            self.monkeypatch.delenv(name)
        self.environment.clear()

    def run(self, command: str) -> None:
        """Type a line."""
        command = command.removeprefix("nohup ").removesuffix(" &").split(" > ")[0]
        words = shlex.split(command)
        while re.match(r"[A-Z_]+=", words[0]) or words[0] == "export":
            if words[0] != "export":
                name, _, value = words[0].partition("=")
                place = self.places.get(value)
                self.environment[name] = place() if place else value
                self.monkeypatch.setenv(name, self.environment[name])
            del words[0]
            if not words:
                return
        program, *words = words
        if program == "pip":
            self._check_extra(words)
        elif program == "python":
            self._run_module(words)
        else:
            assert program == "hpsearch", command
            self._run_hpsearch(words)

    def _check_extra(self, words: list[str]) -> None:
        *install, what = words
        assert install == ["install", "-e"]
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        (extra,) = re.fullmatch(r"\.(?:\[(\w+)\])?", what).groups()  # type: ignore[union-attr]
        assert extra is None or extra in project["optional-dependencies"]

    def _run_module(self, words: list[str]) -> None:
        """Benchmarks take hours, and have tests of their own: their arguments alone are read."""
        option, name, *arguments = words
        assert option == "-m"
        main = importlib.import_module(name).main
        self.monkeypatch.setattr(sys, "argv", [name, *arguments])
        with redirect_stdout(StringIO()):
            if name.startswith("tests.benchmarks."):
                with pytest.raises(Parsed):
                    main()
            else:
                main()

    def _run_hpsearch(self, words: list[str]) -> None:
        if only_names(words):
            return
        words = [self.places[word]() if word in self.places else word for word in words]
        words = [WORDS.get(word, word) for word in words]
        typed = " ".join(words)
        for start, added in ADDED.items():
            words += added if f"{typed} ".startswith(f"{start} ") else []
        key = (*words, *self.environment.items())
        if key in self.done:
            return
        self.done.add(key)
        if words[0] in ("dashboard", "storage-proxy") and "--hash-password" not in words:
            self._serve(words)
        else:
            result = CliRunner().invoke(app, words, input="a secret\na secret\n")
            assert result.exit_code == 0, f"{typed}: {result.exception!r}\n{result.output}"

    def _serve(self, words: list[str]) -> None:
        server = self.servers.enter_context(running(self.folder, *words))
        assert server.stdout is not None
        address = server.stdout.readline().split()[0]
        if words[0] == "dashboard":
            with urllib.request.urlopen(address, timeout=30) as answer:
                assert answer.status == 200
        else:
            assert address.startswith("grpc://127.0.0.1:")
            self.places["grpc://10.0.0.5:13000"] = lambda: address


@pytest.fixture
def small_studies(few_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The studies that ship, with few trials of one epoch on few images."""
    folder = tmp_path / "shipped"
    shutil.copytree(config.SHIPPED_DIRECTORY, folder, ignore=shutil.ignore_patterns("*.py"))
    for name in config.SHIPPED:
        file = folder / f"{name}.toml"
        study = tomllib.loads(file.read_text())
        study["data"]["source"] = str(few_images)
        study["trial"]["epochs"] = 1
        study["space"]["width"] = 4
        study["budget"] = {"trials": TRIALS}
        file.write_text(tomli_w.dumps(study))
    monkeypatch.setattr(config, "SHIPPED_DIRECTORY", folder)


@pytest.mark.usefixtures("small_studies", "signals")
def test_what_the_documents_tell_people_to_type_does_what_it_says(
    few_images: Path,
    tmp_path: Path,
    postgres_server: Postgres,
    s3_bucket: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in [name for name in os.environ if name.startswith("HPSEARCH_")]:
        monkeypatch.delenv(name)
    (folder / "photos").symlink_to(few_images)
    shutil.copy(next(few_images.glob("test/cat/*")), "photo.jpg")
    (folder / "token").write_text("8c1f60b2d94e7a35\n")

    parse = argparse.ArgumentParser.parse_args

    def parse_alone(parser: argparse.ArgumentParser) -> None:
        parse(parser)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_alone)
    shared = str(tmp_path / "shared")
    places: dict[str, Callable[[], str]] = {
        "postgresql+psycopg://me@database/hpsearch": lambda: postgres_server.new_database().url,
        "/shared/hpsearch": lambda: shared,
        "s3://bucket/prefix": lambda: f"{s3_bucket}/prefix",
    }
    reader = Reader(monkeypatch, places, folder)
    with reader.servers:
        for name in config.SHIPPED:  # In this process: `run` then finds them done.
            reader.run(f"hpsearch worker {name}")
        for page in PAGES:
            for kind, text in texts(page):
                if kind == "heading":
                    reader.begin_section()
                elif kind == "python" and page.name == "README.md":
                    with redirect_stdout(StringIO()):
                        exec(text, {})
                elif kind == "command" and is_run_here(text):
                    reader.run(text)
    assert {words[0] for words in reader.done} == set(COMMANDS)


def test_what_is_not_run_is_in_the_documents() -> None:
    commands = [text for page in PAGES for kind, text in texts(page) if kind == "command"]
    assert [
        start for start in NOT_RUN_HERE if not any(text.startswith(start) for text in commands)
    ] == []
