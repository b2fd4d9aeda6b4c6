"""Settings in words: which pruner there is, and what pydantic finds wrong with a value."""

from collections.abc import Mapping
from typing import Any

from pydantic_core import ErrorDetails

from studies.text import shortened

LONGEST_SHOWN = 200
"""Characters of a wrong value in an error."""

_WORDS = {
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be finite",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "string_too_long": "must have {max_length} characters at most",
    "string_pattern_mismatch": "must be of the form {pattern}",
    "literal_error": "must be {expected}",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "too_short": "must not be empty",
    "too_long": "must have {max_length} entries at most",
    "missing": "missing",
}


def which_pruner(name: str) -> str:
    """For instance `median pruner`, or `no pruner`."""
    return f"{'no' if name == 'none' else name} pruner"


def in_words(error: ErrorDetails) -> str:
    """What is wrong, with the wrong value where it is not said already."""
    if error["type"] == "value_error":
        # Ours, from a check in the models.
        message = str(error["msg"]).removeprefix("Value error, ")
        return message if "must" in message else f"{message}{_given(error['input'])}"
    context: Mapping[str, Any] = error.get("ctx", {})
    words = _WORDS.get(error["type"])
    message = words.format(**context) if words else str(error["msg"])
    return message if error["type"] == "missing" else f"{message}{_given(error['input'])}"


def _given(value: object) -> str:
    # A table is as long as what stands in it.
    return "" if isinstance(value, dict) else f", but is {shortened(repr(value), LONGEST_SHOWN)}"
