"""Python modules as text: their trees, what their names are bound to, and the words of the source.

Owns: reading a module's syntax tree, once. Does not own finding its text (the caller does: a ``Finder``), nor what
an expression means (``expressions``).
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

MAX_TEXT = 400
"""Characters of source text that are shown of one expression."""

DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


@dataclass(frozen=True)
class Source:
    """The text of one module. ``name`` is dotted; ``is_package`` matters for its relative imports."""

    name: str
    text: str
    is_package: bool = False


Finder = Callable[[str], Source | None]
"""Gives the source of a module by its dotted name, or ``None`` if it has none, or none worth reading."""


@dataclass(frozen=True)
class Binding:
    """One thing that binds a name: a definition, an import (by dotted name) or the value of an expression."""

    node: ast.AST
    imported: str = ""
    path: tuple[int, ...] | None = ()
    """Where in the value, for ``a, b = 1, 2``; ``None`` if it cannot be told."""


@dataclass(eq=False)
class Module:
    """A parsed module."""

    name: str
    tree: ast.Module
    lines: list[bytes]
    is_package: bool = False
    bindings: dict[str, list[Binding]] = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)
    """Modules of which everything is imported."""

    def text(self, node: ast.AST) -> str:
        """The source of an expression on one line, as written if it stands on one."""
        first, last = getattr(node, "lineno", 0), getattr(node, "end_lineno", None)
        start, end = getattr(node, "col_offset", 0), getattr(node, "end_col_offset", None)
        if first and first == last and end is not None and first <= len(self.lines):
            text = self.lines[first - 1][start:end].decode(errors="replace")
        else:
            try:
                text = ast.unparse(node)
            except (RecursionError, ValueError):
                text = "..."
        text = " ".join(text.split())
        return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"

    def absolute(self, module: str | None, level: int) -> str:
        """The dotted name that ``from <level dots><module> import`` means here."""
        if not level:
            return module or ""
        package = self.name.split(".")
        package = package[: len(package) - level + (1 if self.is_package else 0)]
        return ".".join([*package, *([module] if module else [])])


def read(source: Source) -> Module:
    """Parse a module. Raises ``SyntaxError``."""
    try:
        tree = ast.parse(source.text)
    except (
        ValueError,
        RecursionError,
        MemoryError,
    ) as error:  # null bytes, lone surrogates, or too deep for CPython
        raise SyntaxError(f"module {source.name} cannot be parsed: {error}") from error
    text = source.text.replace("\r\n", "\n").replace("\r", "\n")
    module = Module(source.name, tree, text.encode(errors="replace").split(b"\n"), source.is_package)
    module.bindings = bindings(tree.body, module)
    return module


def bindings(body: list[ast.stmt], module: Module) -> dict[str, list[Binding]]:
    """What each name at the top of a module or class is bound to, anywhere in it."""
    found: dict[str, list[Binding]] = {}
    for statement in statements(body):
        for name, binding in _bound(statement, module):
            found.setdefault(name, []).append(binding)
    return found


def statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """All statements of a body and of the ``if``, ``try``, ``with`` … in it, but of no function or class."""
    waiting = list(reversed(body))
    while waiting:  # no recursion: a chain of ``elif`` may be long
        statement = waiting.pop()
        yield statement
        if not isinstance(statement, DEFINITIONS):
            waiting += reversed(_held(statement))


def _bound(statement: ast.stmt, module: Module) -> Iterator[tuple[str, Binding]]:
    match statement:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            yield statement.name, Binding(statement)
        case ast.Import(names):
            for alias in names:
                first = alias.name.partition(".")[0]
                yield alias.asname or first, Binding(statement, alias.name if alias.asname else first)
        case ast.ImportFrom(name, names, level):
            origin = module.absolute(name, level or 0)
            for alias in names:
                if alias.name == "*":
                    module.stars.append(origin)
                else:
                    yield alias.asname or alias.name, Binding(statement, f"{origin}.{alias.name}")
        case ast.Assign(targets, value):
            for target in targets:
                yield from _targets(target, value, ())
        case ast.AnnAssign(target, _, ast.expr() as value):
            yield from _targets(target, value, ())
        case ast.AugAssign(target) | ast.For(target) | ast.AsyncFor(target):
            yield from _targets(target, statement, None)
        case ast.With(with_items) | ast.AsyncWith(with_items):
            for item in with_items:
                if item.optional_vars is not None:
                    yield from _targets(item.optional_vars, statement, None)


def _targets(target: ast.expr, value: ast.AST, path: tuple[int, ...] | None) -> Iterator[tuple[str, Binding]]:
    if isinstance(target, ast.Name):
        yield target.id, Binding(value, path=path)
    elif isinstance(target, (ast.Tuple, ast.List)):
        for index, each in enumerate(target.elts):
            yield from _targets(each, value, None if path is None else (*path, index))
    elif isinstance(target, ast.Starred):
        yield from _targets(target.value, value, None)


def own_statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a loop's body that are not in a loop or function of their own."""
    waiting = list(reversed(body))
    while waiting:
        statement = waiting.pop()
        yield statement
        if isinstance(statement, (ast.For, ast.AsyncFor, ast.While)):
            waiting += reversed(statement.orelse)
        elif not isinstance(statement, DEFINITIONS):
            waiting += reversed(_held(statement))


def _held(statement: ast.stmt) -> list[ast.stmt]:
    """The statements directly in a statement."""
    held = [each for name in ("body", "orelse", "finalbody") for each in getattr(statement, name, ())]
    parts = (*getattr(statement, "handlers", ()), *getattr(statement, "cases", ()))
    return held + [each for part in parts for each in part.body]
