"""What the README tells people to type exists."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import typer.main

from search.cli import app
from studies.card import model_card

Hpsearch = Callable[..., subprocess.CompletedProcess[str]]

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(page.read_text() for page in PAGES)
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
TYPED = sorted(set(re.findall(r"hpsearch ([a-z-]+(?: [^`|\n#>&]*)?)", TEXT)))


def test_every_command_is_documented() -> None:
    assert {f"hpsearch {name}" for name in COMMANDS} <= set(re.findall(r"hpsearch [\w-]+", README))


@pytest.mark.parametrize("line", [line for line in TYPED if line.split()[0] in COMMANDS])
def test_every_option_that_is_shown_exists(line: str) -> None:
    command, *words = line.split()
    options = {name for parameter in COMMANDS[command].params for name in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options


def test_make_has_the_two_commands_of_the_readme() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^    make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_the_pictures_and_files_that_it_names_are_there() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", page.read_text()):
            assert (page.parent / link).is_file(), f"{page.name}: {link}"
    for name in re.findall(r"`((?:search|model|studies|tests)/[\w./]+)`", TEXT):
        assert (ROOT / name).exists(), name


def test_the_python_is_the_same_as_in_an_exported_folder() -> None:
    (here,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    description = {
        "study": "s",
        "trial": 0,
        "parameters": {},
        "validation_accuracy": 0.5,
        "validation_accuracy_per_epoch": [0.5],
        "best_epoch": 1,
        "test_accuracy": 0.5,
        "test_accuracy_with_flips": 0.5,
        "data": {"source": "x", "classes": ["a"]},
    }
    (there,) = re.findall(r"```python\n(.*?)```", model_card(description, "best"), re.DOTALL)
    assert here == there


def test_init_writes_a_study_that_run_accepts(
    hpsearch: Hpsearch, few_images: Path, tmp_path: Path
) -> None:
    assert hpsearch("init", "flowers.toml").returncode == 0
    settings = ("--set", "space.width=4", "--set", "trial.epochs=1", "--data", few_images)
    result = hpsearch("run", "flowers.toml", "--trials", 1, "--workers", 1, *settings)
    assert result.returncode == 0, result.stderr
    assert "study 'flowers' created" in result.stdout
    again = hpsearch("init", "flowers.toml")
    assert again.returncode == 2
    assert "exists already" in again.stderr
