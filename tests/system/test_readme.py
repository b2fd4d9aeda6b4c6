"""What the README names exists; what it tells people to type is run by `test_documents`."""

import re
from pathlib import Path

import typer.main

from search.cli import app
from studies.card import model_card

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(page.read_text() for page in PAGES)
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def test_every_command_is_documented() -> None:
    assert {f"hpsearch {name}" for name in COMMANDS} <= set(re.findall(r"hpsearch [\w-]+", README))


def test_every_command_has_its_python_or_is_named_as_an_exception() -> None:
    """By the headings of the page."""
    shown: set[str] = set()
    alone: set[str] = set()
    for part in (ROOT / "docs" / "python.md").read_text().split("\n## ")[1:]:
        heading, _, content = part.partition("\n")
        exception = heading.startswith("For the command alone")
        assert exception != ("```python\n" in content), heading
        (alone if exception else shown).update(re.findall(r"`hpsearch ([\w-]+)`", heading))
    assert shown | alone == set(COMMANDS)
    assert shown & alone == set()


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
    (here,) = re.findall(r"```python\n(from model[^`]*)```", README)
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
