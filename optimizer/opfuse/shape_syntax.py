"""How users write the shapes of dynamic inputs: the spellings of trtexec and of polygraphy."""

from __future__ import annotations

import re

from opfuse.config import Shape
from opfuse.errors import InputError

_ENTRY = re.compile(
    r"""\s*(?:(?P<quote>['"])(?P<quoted>.+?)(?P=quote)|(?P<plain>[^\s'",]+?))
        :(?:\[(?P<list>[\d\s,]*)\]|(?P<times>\d+(?:x\d+)*)|(?P<scalar>scalar))\s*(?:,|\s|$)""",
    re.VERBOSE,
)
_DIGITS = 20  # Python reads no number of thousands
SYNTAX = (
    "write name:1x3x224x224,other:8x128 or name:[1,3,224,224]; quote a name with a colon: 'a:0':1x2"
)


def parse_shapes(text: str) -> dict[str, Shape]:
    """Reads ``name:1x3x224x224,other:..`` or ``name:[1,3,224,224]``, as trtexec and polygraphy do.

    Names may be quoted. ``scalar`` and ``[]`` are the shape of rank 0.

    Raises:
        InputError: The text is neither form, a dimension is 0, or a name comes twice.
    """
    shapes: dict[str, Shape] = {}
    position = 0
    while position < len(text):
        entry = _ENTRY.match(text, position)
        if entry is None:
            raise InputError(f"cannot read shapes {text!r} at {text[position:]!r}", SYNTAX)
        name = entry["quoted"] or entry["plain"]
        if name in shapes:
            raise InputError(f"shapes {text!r} give input {name!r} twice", "give it once")
        shapes[name] = _dims(entry, text)
        position = entry.end()
    if not shapes:
        raise InputError("the list of shapes is empty", SYNTAX)
    return shapes


def _dims(entry: re.Match[str], text: str) -> Shape:
    if entry["scalar"]:
        return ()
    if entry["times"]:
        parts = entry["times"].split("x")
    else:
        parts = [part for part in re.split(r"[\s,]+", entry["list"].strip()) if part]
    if any(len(part) > _DIGITS for part in parts):
        raise InputError(f"shapes {text!r} have a dimension of too many digits", SYNTAX)
    dims = tuple(int(part) for part in parts)
    if 0 in dims:
        raise InputError(f"shapes {text!r} have a dimension of 0", "dimensions are 1 or more")
    return dims
