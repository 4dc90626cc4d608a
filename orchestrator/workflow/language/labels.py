"""The bounded name of a step: what stands in the source, with dynamic parts as ``${...}``.

Owns: finding the call in the source file. Does not own: the step's real name. Labels go where a set of names
must stay small (task names in Flower, metrics).
"""

from __future__ import annotations

import ast
import linecache
from functools import lru_cache

DYNAMIC = "${...}"


TRIES = 10


def label(filename: str, line: int, name: str) -> str:
    """``name`` if the call on ``line`` spells it out, its template if it is an f-string, else ``${...}``."""
    for _ in range(TRIES):
        try:
            return _label(filename, line, name)
        except (
            SystemError
        ):  # CPython 3.11 loses count of its depth where another thread builds a tree meanwhile
            continue
        except (RecursionError, MemoryError):
            break
    return DYNAMIC


@lru_cache(maxsize=65536)
def _label(filename: str, line: int, name: str) -> str:
    templates = _templates(filename).get(line)
    if not templates:
        return DYNAMIC
    if name in templates:
        return name
    for template in templates:
        if DYNAMIC in template and _fits(template, name):
            return template
    return DYNAMIC


def _fits(template: str, name: str) -> bool:
    """Whether ``name`` could have been made from ``template``."""
    position = 0
    parts = template.split(DYNAMIC)
    if not name.startswith(parts[0]) or not name.endswith(parts[-1]):
        return False
    for part in parts:
        position = name.find(part, position)
        if position < 0:
            return False
        position += len(part)
    return True


@lru_cache(maxsize=256)
def _templates(filename: str) -> dict[int, list[str]]:
    """Every first argument of a call in the file, by each line the call covers."""
    found: dict[int, list[str]] = {}
    try:
        tree = ast.parse("".join(linecache.getlines(filename)))
    except (SyntaxError, ValueError):
        return found
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            argument = node.args[0] if node.args else _keyword(node)
            template = _template(argument) if argument is not None else None
            if template is not None:
                for line in range(node.lineno, (node.end_lineno or node.lineno) + 1):
                    found.setdefault(line, []).append(template)
    return found


def _keyword(node: ast.Call) -> ast.expr | None:
    return next((k.value for k in node.keywords if k.arg == "name"), None)


def _template(node: ast.expr) -> str | None:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        parts = [v.value if isinstance(v, ast.Constant) else DYNAMIC for v in node.values]
        return "".join(str(part) for part in parts)
    return None
