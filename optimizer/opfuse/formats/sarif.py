"""SARIF 2.1.0, which code hosts show as annotations."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from opfuse import __version__
from opfuse.formats.finding import RULES, Finding, visible

SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
_ROOT = "%SRCROOT%"


def sarif(findings: Iterable[Finding]) -> str:
    """The findings as a SARIF log; files are named from the working directory."""
    results = [_result(finding) for finding in findings]
    driver = {"name": "opfuse", "version": __version__, "rules": [_rule(name) for name in RULES]}
    run = {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}
    log = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(log, indent=1, ensure_ascii=True) + "\n"


def _rule(name: str) -> dict[str, Any]:
    level, text = RULES[name]
    return {
        "id": name,
        "shortDescription": {"text": f"{text}."},
        "defaultConfiguration": {"level": level},
    }


def _result(finding: Finding) -> dict[str, Any]:
    place: dict[str, Any] = {
        "physicalLocation": {
            "artifactLocation": _artifact(finding.file),
            "region": {"startLine": finding.line},
        }
    }
    if finding.node:
        node = visible(finding.node)
        place["logicalLocations"] = [{"fullyQualifiedName": node, "kind": "element"}]
    same = f"{finding.rule}\n{os.path.basename(finding.file)}\n{finding.node}\n{finding.message}"
    digest = hashlib.sha256(same.encode(errors="surrogateescape")).hexdigest()
    return {
        "ruleId": finding.rule,
        "ruleIndex": list(RULES).index(finding.rule),
        "level": RULES[finding.rule][0],
        "message": {"text": visible(finding.text)},
        "locations": [place],
        "partialFingerprints": {"opfuse/v1": digest[:32]},
    }


def _artifact(file: str) -> dict[str, str]:
    """Where a file is: from the root of the sources if it is in there, else wholly."""
    path = Path(os.path.abspath(file))
    try:
        inside = path.relative_to(Path.cwd())
    except (ValueError, OSError):
        return {"uri": "file://" + quote(os.fsencode(path))}
    return {"uri": quote(os.fsencode(inside)), "uriBaseId": _ROOT}
