"""Reports in the formats that CI systems read: SARIF, JUnit, Markdown; and a check as a page.

They are made from the JSON form of a report, which holds all that they tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any


def of_report(report: Mapping[str, Any], suffix: str) -> str:
    """What build, fuse, or explain found, as ``.sarif``, ``.xml``, or ``.md``."""
    from opfuse.formats import finding

    if suffix == ".sarif":
        from opfuse.formats.sarif import sarif

        return sarif(finding.of_report(report))
    if suffix == ".xml":
        from opfuse.formats.junit import junit

        name, seconds = PurePath(report["model"]["path"]).name, sum(report["timings_s"].values())
        return junit("opfuse", name, finding.cases_of_report(report), seconds)
    from opfuse.formats.markdown import report_as_markdown

    return report_as_markdown(report)


def of_check(check: Mapping[str, Any], suffix: str, lock: str, verdict: str) -> str:
    """What a check found, as ``.sarif``, ``.xml``, ``.md``, or ``.html``.

    Args:
        check: The check in its JSON form.
        suffix: Of the file that is written.
        lock: The text of the lock, for the lines in it.
        verdict: The line that sums the check up.
    """
    from opfuse.formats import finding

    if suffix == ".sarif":
        from opfuse.formats.sarif import sarif

        return sarif(finding.of_check(check, lock))
    if suffix == ".xml":
        from opfuse.formats.junit import junit

        name, seconds = PurePath(check["model"]).name, sum(check["timings_s"].values())
        return junit("opfuse check", name, finding.cases_of_check(check), seconds)
    if suffix == ".md":
        from opfuse.formats.markdown import check_as_markdown

        return check_as_markdown(check, verdict)
    from opfuse.formats.page import check_as_page

    return check_as_page(check, verdict)
