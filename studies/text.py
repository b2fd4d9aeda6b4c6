"""Text from elsewhere, as it may be shown: without passwords or a terminal's codes, and not long.

"Elsewhere" is a study file, the database, which others can write to, and an exception.
"""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

MASK = "***"
LONGEST_VALUE = 100  # characters of a parameter
SECRETS = ("PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HPSEARCH_PROXY_TOKEN")
"""In the environment, beside what is in the storage's URL."""

_IN_URL = re.compile(r"(\b[a-z][\w+.-]*://[^\s:/@]*:)(.+)@", re.IGNORECASE | re.DOTALL)
# With limits: without them, a hostile text of some megabytes would take hours.
_IN_TEXT = re.compile(r"(\b[a-z][\w+.-]{0,40}://[^\s:/@]{0,100}:)\S{0,1000}@", re.IGNORECASE)
_IN_QUERY = re.compile(r"([?&]\w{0,40}pass\w{0,40}=)([^&\s'\"]+)", re.IGNORECASE)

# All but tab and newline of what a terminal obeys; what reverses the order of letters; and halves
# of letters, which cannot be printed at all.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    """The text without characters that do something to a terminal instead of being shown."""
    return _UNPRINTABLE.sub("", text)


def shortened(text: str, longest: int) -> str:
    """At most so many characters, with an ellipsis in place of more."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def counted(number: int, noun: str) -> str:
    """For instance `1 trial`, `2 trials`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def readable(parameters: Mapping[str, Any]) -> str:
    """Parameters on one line, numbers with four digits."""
    return ", ".join(f"{name} {readable_value(value)}" for name, value in parameters.items())


def readable_value(value: object) -> str:
    """A parameter's value on one line, not too long; of a number, four digits."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return " ".join(shortened(as_written(value), LONGEST_VALUE).split())


def as_written(value: object) -> str:
    """A value as a study file has it, without quotes."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def masked_url(url: str) -> str:
    """A database's URL without its password, even if the password is not written as it should be.

    That is, if characters like @ and / stand in it as they are.
    """
    return _IN_QUERY.sub(rf"\1{MASK}", _IN_URL.sub(rf"\1{MASK}@", url))


def without_passwords(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """The text with `***` for each password in it: in any URL, or of this process's stores."""
    for password in sorted(_passwords(environment), key=len, reverse=True):
        text = text.replace(password, MASK)
    return _IN_QUERY.sub(rf"\1{MASK}", _IN_TEXT.sub(rf"\1{MASK}@", text))


def _passwords(environment: Mapping[str, str]) -> Iterator[str]:
    """Those that stand in the environment; libpq alone reads a .pgpass."""
    url = environment.get("HPSEARCH_STORAGE", "")
    written = [match[2] for match in (*_IN_URL.finditer(url), *_IN_QUERY.finditer(url))]
    for password in (*(environment.get(name, "") for name in SECRETS), *written):
        yield from {password, unquote(password)} - {"", MASK}
