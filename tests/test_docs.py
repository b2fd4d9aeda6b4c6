"""What is generated for `docs/` is up to date."""

from pathlib import Path

from tests.study_file import study_file_reference

DOCS = Path(__file__).parents[1] / "docs"


def test_the_study_file_s_reference_is_of_this_version() -> None:
    assert (DOCS / "study-file.md").read_text() == study_file_reference(), (
        "python -m tests.study_file > docs/study-file.md"
    )


def test_every_setting_is_explained() -> None:
    rows = [line for line in study_file_reference().splitlines() if line.startswith("| `")]
    assert len(rows) > 40
    assert [row for row in rows if row.endswith("|  |")] == []
