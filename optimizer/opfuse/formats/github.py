"""A SARIF log as annotations of a GitHub runner: ``python -m opfuse.formats.github FILE.sarif``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

_COMMANDS = {"error": "error", "warning": "warning", "note": "notice"}
_MOST = 10  # of each kind, which is what GitHub shows of a step


def lines(log: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each result, such as ``::error file=opfuse.lock,line=9,title=...::...``."""
    left = dict.fromkeys(_COMMANDS, _MOST)
    for result in log["runs"][0]["results"]:
        level = result["level"]
        left[level] -= 1
        if left[level] < 0:
            continue
        place = result["locations"][0]["physicalLocation"]
        file = unquote(place["artifactLocation"]["uri"].removeprefix("file://"))
        keys = {"file": file, "line": place["region"]["startLine"], "title": result["ruleId"]}
        told = ",".join(f"{name}={_property(value)}" for name, value in keys.items())
        yield f"::{_COMMANDS[level]} {told}::{_data(result['message']['text'])}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(value: object) -> str:
    return _data(str(value)).replace(":", "%3A").replace(",", "%2C")


if __name__ == "__main__":
    for line in lines(json.loads(Path(sys.argv[1]).read_bytes())):
        sys.stdout.write(f"{line}\n")
