"""What can be done with values: joining, bounding, searching and reading them.

Owns: the operations. Does not own the kinds of value (``atoms``) or where values come from (``expressions``,
``calls``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any

from orchestrator.diagrams.nodes import UNKNOWN as UNKNOWN_TEXT
from orchestrator.diagrams.parsing.atoms import (
    ANYTHING,
    AWAITABLE,
    COLLECTIONS,
    SCALARS,
    UNKNOWN,
    WIDE,
    Anything,
    Atom,
    Coroutine,
    External,
    Function,
    Handle,
    Instance,
    Items,
    Joined,
    Known,
    Opaque,
    Partial,
    Record,
    Row,
    StepMethod,
    Text,
    Value,
    Written,
)

MAX_CHOICES, MAX_DEPTH, MAX_ROW, MAX_SIZE = 4, 4, 40, 250
"""Constants that a value may be; collections in collections; elements known one by one; atoms in all."""

CACHE = 8_192


def known(constant: Any) -> Value:
    """A constant of the language."""
    return frozenset({Known(type(constant).__name__, constant)})


def joined(values: Iterable[Value]) -> Value:
    """One of these."""
    return bounded(frozenset().union(*values))


@lru_cache(maxsize=CACHE)
def bounded(value: Value) -> Value:
    """The value, or one that is less precise if it is too big to compute with.

    Joining over and over must come to an end, so what was given up once is not taken up again: ``WIDE`` stays.
    """
    constants = sum(isinstance(atom, (*SCALARS, External)) for atom in value)
    rows = sum(isinstance(atom, (Row, Record, Partial)) for atom in value)
    is_wide = WIDE in value or max(constants, rows) > MAX_CHOICES or size(value) > MAX_SIZE
    kept: set[Atom] = {WIDE} if is_wide else set()
    collected: dict[type[Items | Joined | Opaque], list[Value]] = {}
    for atom in value:
        if is_wide and isinstance(atom, COLLECTIONS):
            collected.setdefault(Opaque, []).append(_contents(atom))
        elif isinstance(atom, (Items, Joined, Opaque)):
            collected.setdefault(type(atom), []).append(atom.contents)
        elif not (is_wide and isinstance(atom, (*SCALARS, External))):
            kept.add(atom)
    for kind, contents in collected.items():
        kept.add(kind(joined(contents)))
    return frozenset(kept)


def _contents(collection: Atom) -> Value:
    """What matters in a collection when it is no longer known how it stands in it."""
    found = atoms(frozenset({collection}))
    return frozenset(
        a for a in found if not isinstance(a, (*COLLECTIONS, *SCALARS, Opaque, Anything, External))
    )


@lru_cache(maxsize=CACHE)
def size(value: Value) -> int:
    """How many atoms there are in it."""
    return sum(1 + sum(map(size, parts(atom))) for atom in value)


def cut(value: Value, levels: int = MAX_DEPTH) -> Value:
    """The value with at most so many collections in collections; what is deeper is not understood."""
    if depth(value) <= levels:
        return bounded(value)
    kept: set[Atom] = set()
    for atom in value:
        if isinstance(atom, COLLECTIONS) and not levels:
            kept |= opaque(frozenset({atom}))
        else:
            kept.add(_rebuilt(atom, lambda held: cut(held, levels - 1)))
    return bounded(frozenset(kept))


def awaitables(value: Value) -> Value:
    """The futures and coroutines in it, but not those that a coroutine awaits itself."""
    found: set[Atom] = set()
    for atom in value:
        if isinstance(atom, AWAITABLE):
            found.add(atom)
        else:
            found.update(*map(awaitables, parts(atom)))
    return frozenset(found)


def _rebuilt(atom: Atom, change: Callable[[Value], Value]) -> Atom:
    """A collection with its parts changed; any other atom as it is."""
    match atom:
        case Items(contents) | Joined(contents):
            return type(atom)(change(contents))
        case Row(elements=each):
            return Row(tuple(map(change, each)))
        case Record(fields):
            return Record(tuple((name, change(held)) for name, held in fields))
        case Partial(callee, positional, named):
            inside = tuple((name, change(held)) for name, held in named)
            return Partial(change(callee), tuple(map(change, positional)), inside)
    return atom


def parts(atom: Atom) -> tuple[Value, ...]:
    """The values directly inside an atom."""
    match atom:
        case Items(contents) | Joined(contents) | Opaque(contents):
            return (contents,)
        case Row(elements):
            return elements
        case Record(fields):
            return tuple(value for _, value in fields)
        case Partial(callee, positional, named):
            return (callee, *positional, *(value for _, value in named))
        case Coroutine(carried=carried):
            return (carried,)
        case Function(owner=Atom() as owner):
            return (frozenset({owner}),)
    return ()


def atoms(value: Value) -> Iterator[Atom]:
    """Every atom in a value, in no order."""
    for atom in value:
        yield atom
        for part in parts(atom):
            yield from atoms(part)


def ordered(value: Value) -> Iterator[Atom]:
    """Every atom in a value, outermost first, in an order that is the same in every process."""
    for atom in sorted(value, key=rank) if len(value) > 1 else value:
        yield atom
        for part in parts(atom):
            yield from ordered(part)


@lru_cache(maxsize=CACHE)
def rank(atom: Atom) -> tuple[str, str]:
    """Sorts atoms; hashes of text differ from process to process."""
    kind = type(atom).__name__
    if isinstance(atom, AWAITABLE):
        return kind, "".join(f"{each:9}" for each in (*atom.place, atom.function))
    if isinstance(atom, (Known, Text, Written, External, StepMethod)):
        return kind, repr(atom)
    return (
        kind,
        f"{getattr(atom, 'number', 0):9}{sorted(rank(each) for part in parts(atom) for each in part)}",
    )


@lru_cache(maxsize=CACHE)
def depth(value: Value) -> int:
    """How deep collections stand in collections."""
    return max((1 + depth(part) for atom in value for part in parts(atom)), default=0)


@lru_cache(maxsize=CACHE)
def flat(value: Value) -> Value:
    """Everything in it that is no collection."""
    return frozenset(atom for atom in atoms(value) if not isinstance(atom, (*COLLECTIONS, Opaque)))


def items(contents: Value) -> Value:
    """A collection of ``contents``."""
    return cut(frozenset({Items(contents)}))


def row(elements: list[Value]) -> Value:
    """A tuple or list of these, in order."""
    if len(elements) > MAX_ROW:
        return items(joined(elements))
    return cut(frozenset({Row(tuple(elements))}))


def opaque(contents: Value) -> Value:
    """Something not understood, that was made from ``contents``."""
    kept = frozenset().union(*(_contents(atom) for atom in contents))
    return frozenset({Opaque(kept)}) if kept else UNKNOWN


def elements(value: Value) -> Value:
    """What iterating over it, or asking for one of its elements, gives."""
    found: list[Value] = []
    for atom in value:
        match atom:
            case Items(contents) | Opaque(contents) | Joined(contents):
                found.append(contents)
            case Row() | Record():
                found.extend(parts(atom))
            case Known() | Anything() | External() | Text():
                found.append(UNKNOWN)
            case Instance() | Handle() | Coroutine():
                found.append(frozenset({atom}))
    return joined(found) or UNKNOWN


@lru_cache(maxsize=CACHE)
def without_awaitables(value: Value) -> Value:
    """The value as it is after it has been awaited, or as a function sees it whose caller awaits for it."""
    kept: set[Atom] = set()
    for atom in value:
        match atom:
            case Handle() | Coroutine():
                kept.add(ANYTHING)
            case Joined(contents):
                kept.add(Items(without_awaitables(contents)))
            case Opaque(contents):
                kept |= opaque(without_awaitables(contents))
            case _:
                kept.add(_rebuilt(atom, without_awaitables))
    return bounded(frozenset(kept))


def blurred(value: Value) -> Value:
    """The value when it may have changed meanwhile: constants are no longer known."""
    return UNKNOWN.union(atom for atom in value if not isinstance(atom, SCALARS))


def only(value: Value) -> Atom | None:
    """The one atom of a value; ``None`` if there are several, or none."""
    return next(iter(value)) if len(value) == 1 else None


def scalar(value: Value) -> Any:
    """A value of the configuration as JSON: as written in the source, or ``"unknown"``."""
    match only(value):
        case Known(_, constant):
            return constant
        case Text(template=text) | Written(text=text):
            return text
    return UNKNOWN_TEXT
