"""JUnit's XML, which CI systems list as test cases."""

from __future__ import annotations

from collections.abc import Iterable
from xml.etree import ElementTree

from opfuse.formats.finding import FAILED, SKIPPED, Case, visible


def junit(title: str, model: str, cases: Iterable[Case], seconds: float) -> str:
    """The cases as a file of test suites.

    Args:
        title: Of all suites, such as "opfuse check".
        model: Names the cases apart where there are several models.
        cases: Those of one suite stand together.
        seconds: How long all of it took.
    """
    suites: dict[str, list[Case]] = {}
    for case in cases:
        suites.setdefault(case.suite, []).append(case)
    every = [case for members in suites.values() for case in members]
    root = ElementTree.Element("testsuites", _counts(title, every, seconds))
    for name, members in suites.items():
        suite = ElementTree.SubElement(root, "testsuite", _counts(name, members, 0.0))
        for case in members:
            _add(suite, case, f"{model}.{name}")
    ElementTree.indent(root, " ")
    text: str = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'


def _counts(name: str, cases: list[Case], seconds: float) -> dict[str, str]:
    return {
        "name": visible(name),
        "tests": str(len(cases)),
        "failures": str(sum(case.status == FAILED for case in cases)),
        "errors": "0",
        "skipped": str(sum(case.status == SKIPPED for case in cases)),
        "time": f"{seconds:.3f}",
    }


def _add(suite: ElementTree.Element, case: Case, group: str) -> None:
    names = {"classname": visible(group), "name": visible(case.name), "time": "0"}
    element = ElementTree.SubElement(suite, "testcase", names)
    message = visible(case.message)
    if case.status == FAILED:
        failure = {"message": message, "type": visible(case.suite)}
        ElementTree.SubElement(element, "failure", failure).text = message
    elif case.status == SKIPPED:
        ElementTree.SubElement(element, "skipped", {"message": message})
    elif message:
        ElementTree.SubElement(element, "system-out").text = message
