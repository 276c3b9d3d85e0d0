"""A check as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Template


def check_as_page(check: Mapping[str, Any], verdict: str) -> str:
    """The page.

    Args:
        check: The check in its JSON form; its timings are not shown, so that equal checks give
            equal pages.
        verdict: The line that sums it up.
    """
    return _template().render(name=PurePath(check["model"]).name, check=check, verdict=verdict)


@cache
def _template() -> Template:
    import jinja2

    loader = jinja2.ChoiceLoader(
        [jinja2.PackageLoader("opfuse.formats"), jinja2.PackageLoader("opfuse.explanation")]
    )
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("check.html.j2")
