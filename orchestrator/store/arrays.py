"""Array parameters as text. Owns: the literal of a Postgres array. Does not own: what is in it.

The driver turns a list into an array element by element, in Python; a flush has some seventy of them. Written as one
literal each, with a cast in the statement, they cost a tenth.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_QUOTED = frozenset({"text"})


def array(values: Iterable[Any], kind: str) -> str:
    """The literal of a ``kind[]``. ``kind``: ``text`` is quoted; numbers (``inf`` too), UUIDs and booleans are not."""
    given = tuple(values)
    if kind in _QUOTED:
        items: Iterable[str] = ["NULL" if value is None else _quoted(value) for value in given]
    elif None in given:
        items = ["NULL" if value is None else str(value) for value in given]
    else:
        items = map(str, given)
    return f"{{{','.join(items)}}}"


def _quoted(text: str) -> str:
    if "\\" in text or '"' in text:
        text = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
