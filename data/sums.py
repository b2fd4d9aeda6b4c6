"""The digests of a folder's files, in a file that `sha256sum --check` reads too."""

import re
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path

SUMS = "SHA256SUMS"
EDITED = frozenset({"README.md"})
"""What people may change as they like."""
CHUNK = 1 << 20  # bytes
_LINE = re.compile(r"([0-9a-f]{64}) [ *]([\w.-]+)")


def sums(files: Mapping[str, bytes]) -> bytes:
    """The content of `SHA256SUMS` for files of these names and contents."""
    lines = [f"{sha256(content).hexdigest()}  {name}\n" for name, content in sorted(files.items())]
    return "".join(lines).encode()


def check_sums(folder: Path, needed: frozenset[str]) -> None:
    """Compare the files of a folder with its `SHA256SUMS`, but for those that people edit.

    Args:
        needed: the names that have to be in it.

    Raises:
        FileNotFoundError: the list itself is missing.
        OSError: a file cannot be read.
        ValueError: a file is missing or not as it was written; the message names it.
    """
    listed = dict(_listed(folder))
    if not needed <= listed.keys():
        raise ValueError(f"{SUMS} lists no {min(needed - listed.keys())}")
    for name in sorted(listed.keys() - EDITED):
        if not (folder / name).exists():
            raise ValueError(f"{name} is missing")
        if digest(folder / name) != listed[name]:
            raise ValueError(f"the digest of {name} is not the one in {SUMS}")


def _listed(folder: Path) -> Iterator[tuple[str, str]]:
    for line in (folder / SUMS).read_text(errors="replace").splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"{SUMS} is not a list of digests")
        yield match[2], match[1]


def digest(file: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits."""
    found = sha256()
    with file.open("rb") as opened:
        while chunk := opened.read(CHUNK):
            found.update(chunk)
    return found.hexdigest()
