"""`hpsearch report`: what a study has found, as a page to look at."""

from pathlib import Path

from search.export import baseline_record
from studies.findings import findings
from studies.ownership import OwnedStorage
from studies.report import write_report
from studies.results import utc_now
from studies.study import open_study


def report_study(
    storage: OwnedStorage, name: str, output: Path, numbers: Path | None = None
) -> None:
    """Write the report of a study as an HTML file.

    Args:
        numbers: a file for the same as JSON.

    Raises:
        UserError: there is no such study, or a file cannot be written.
    """
    opened = open_study(storage, name)
    write_report(findings(opened, baseline_record(opened), utc_now()), output, numbers)
