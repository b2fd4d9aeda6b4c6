"""`hpsearch report`: what a study has found, as a page to look at."""

from pathlib import Path

from search.export import baseline_record
from studies.findings import findings
from studies.report import write_report
from studies.results import utc_now
from studies.study import OpenedStudy


def report_study(
    opened: OpenedStudy, output: Path | None = None, numbers: Path | None = None
) -> Path:
    """Write the report of a study as an HTML file.

    Args:
        output: the file; by default `STUDY-report.html`, here.
        numbers: a file for the same as JSON.

    Returns:
        The HTML file.

    Raises:
        UserError: a file cannot be written.
    """
    output = output or Path(f"{opened.config.name}-report.html")
    write_report(findings(opened, baseline_record(opened), utc_now()), output, numbers)
    return output
