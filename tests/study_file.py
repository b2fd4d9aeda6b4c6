"""The reference of the study file, from the models that read it.

python -m tests.study_file > docs/study-file.md
"""

import ast
import inspect
import sys
import textwrap
from collections.abc import Collection, Iterator
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from model.hyperparameters import REFERENCE, Hyperparameters
from studies.config import Section, StudyConfig

BOUNDS = {Ge: ("from", "ge"), Gt: ("above", "gt"), Le: ("to", "le"), Lt: ("below", "lt")}

WORDS: dict[Any, str] = {int: "whole number", float: "number", bool: "true or false"}

HEAD = """\
# The study file

Made by `python -m tests.study_file` from the models that read it. `hpsearch init FILE.toml` writes
one with every setting in it, `--set section.key=value` changes one for a run, and whatever is
unknown or impossible is refused with the key's name. What a file leaves out has the default.
"""

SPACE = """
## `[space]`

Every key is a hyperparameter: one value holds it fixed, a list offers choices, and
`{ low = 1e-4, high = 0.1, log = true }` is a range with both bounds in it (of whole numbers if both
bounds are; `log` searches its orders of magnitude). What is left out has the notebook's value. The
reference is what trial 1 of a study takes instead; see `model/README.md`. An `objective` of your
own has parameters of your own here.

| parameter | notebook | reference | |
|---|---|---|---|
"""

STARTS = """
## `[[start]]`

A configuration that is known to be good, as often as you like: one value each for some or all
parameters of the space. The sampler chooses what is not named.
"""


def main() -> None:
    sys.stdout.write(study_file_reference())


def study_file_reference() -> str:
    """The reference, as Markdown."""
    sections = {
        name: field.annotation
        for name, field in StudyConfig.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    }
    text = (
        HEAD
        + "\n## At the top\n\n"
        + _settings(StudyConfig, leave_out={*sections, "space", "start"})
    )
    for name, section in sections.items():
        text += f"\n## `[{name}]`\n\n{_settings(section)}"
        if name == "trial":
            text += SPACE + "".join(_hyperparameters()) + STARTS
    return text


def _settings(section: type[Section], leave_out: Collection[str] = ()) -> str:
    described = _docstrings(section)
    rows = ["| key | default | values | |\n|---|---|---|---|\n"]
    for name, field in section.model_fields.items():
        if name not in leave_out:
            default = "" if field.is_required() or field.default is None else _code(field.default)
            rows.append(f"| `{name}` | {default} | {_values(field)} | {described[name]} |\n")
    return "".join(rows)


def _hyperparameters() -> Iterator[str]:
    described = _docstrings(Hyperparameters)
    for field in fields(Hyperparameters):
        reference = _code(REFERENCE[field.name]) if field.name in REFERENCE else ""
        notebook, meaning = _code(field.default), described[field.name]
        yield f"| `{field.name}` | {notebook} | {reference} | {meaning} |\n"


def _values(field: FieldInfo) -> str:
    """Choices, or the type and its bounds."""
    kinds = [kind for kind in get_args(field.annotation) if kind is not type(None)]
    kind = kinds[0] if kinds and get_origin(field.annotation) is not Literal else field.annotation
    if get_origin(kind) is Literal:
        return ", ".join(_code(choice) for choice in get_args(kind))
    words = WORDS.get(kind, "text")
    bounds = [
        f"{word} {getattr(limit, attribute)}"
        for limit in field.metadata
        for bound, (word, attribute) in BOUNDS.items()
        if isinstance(limit, bound)
    ]
    return " ".join([words, *bounds])


def _code(value: object) -> str:
    """As it is written in the file."""
    return f"`{str(value).lower()}`" if isinstance(value, bool | int | float) else f'`"{value}"`'


def _docstrings(section: type[Any]) -> dict[str, str]:
    """What stands below each field of a class, in one line."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for statement, following in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            text = ""
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                text = " ".join(str(following.value.value).split())
            found[statement.target.id] = text
    return found


if __name__ == "__main__":
    main()
