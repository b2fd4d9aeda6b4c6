import subprocess
from pathlib import Path

import pytest

from data.sums import SUMS, check_sums, sums

FILES = {"weights": b"\x00\x01" * 2_000_000, "text.json": b"{}\n", "README.md": b"# Of mine\n"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / SUMS).write_bytes(sums(FILES))
    return tmp_path


def test_the_list_is_one_that_sha256sum_checks(folder: Path) -> None:
    check_sums(folder, frozenset(FILES))
    checked = subprocess.run(
        ["sha256sum", "--strict", "--check", SUMS], cwd=folder, capture_output=True, check=True
    )
    assert checked.stdout == b"README.md: OK\ntext.json: OK\nweights: OK\n"


def test_one_changed_bit_is_found_and_its_file_named(folder: Path) -> None:
    content = bytearray(FILES["weights"])
    content[3_000_000] ^= 1
    (folder / "weights").write_bytes(content)
    with pytest.raises(ValueError, match="the digest of weights is not the one in SHA256SUMS"):
        check_sums(folder, frozenset())


def test_a_file_that_is_listed_and_missing_is_found(folder: Path) -> None:
    (folder / "text.json").unlink()
    with pytest.raises(ValueError, match=r"text\.json is missing"):
        check_sums(folder, frozenset())


def test_a_list_without_a_file_that_is_needed_is_refused(folder: Path) -> None:
    (folder / SUMS).write_bytes(sums({"text.json": FILES["text.json"]}))
    check_sums(folder, frozenset({"text.json"}))
    with pytest.raises(ValueError, match="SHA256SUMS lists no weights"):
        check_sums(folder, frozenset({"weights"}))


@pytest.mark.parametrize("text", [b"\xff", b"abc", b"0" * 64 + b"  ../elsewhere\n"])
def test_what_is_not_a_list_is_refused(folder: Path, text: bytes) -> None:
    (folder / SUMS).write_bytes(text)
    with pytest.raises(ValueError, match="SHA256SUMS is not a list of digests"):
        check_sums(folder, frozenset())


def test_the_text_for_people_may_be_edited_and_files_added(folder: Path) -> None:
    (folder / "README.md").write_text("# Mine\n")
    (folder / "notes.txt").write_text("mine too")
    check_sums(folder, frozenset(FILES))
