"""What a name may stand for: the abstract values that the parser computes with.

Owns: the kinds of value, how they are joined, bounded and searched. Does not own where they come from
(``expressions``, ``calls``). A value is a set of atoms, for it may be one of several things; nothing in here is ever
executed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from orchestrator.diagrams.nodes import UNKNOWN as UNKNOWN_TEXT

MAX_CHOICES = 4
MAX_DEPTH = 4
MAX_ROW = 40
CACHE = 8_192


@dataclass(frozen=True, slots=True)
class Atom:
    """One thing that a value may be."""


Value = frozenset[Atom]


@dataclass(frozen=True, slots=True)
class Anything(Atom):
    """Nothing is known. ``wide``: there were too many constants to go on with."""

    wide: bool = False


@dataclass(frozen=True, slots=True)
class Known(Atom):
    """A constant. ``kind`` tells ``1`` from ``True``."""

    kind: str
    constant: Any


@dataclass(frozen=True, slots=True)
class Text(Atom):
    """Text with parts that are not known."""

    template: str


@dataclass(frozen=True, slots=True)
class Written(Atom):
    """A constant expression such as ``timedelta(hours=1)``, as it is written."""

    text: str


@dataclass(frozen=True, slots=True)
class Step(Atom):
    """The step object."""


@dataclass(frozen=True, slots=True)
class StepMethod(Atom):
    """``step.do`` and the like, not called yet."""

    name: str


@dataclass(frozen=True, slots=True)
class Function(Atom):
    """A function of the sources; ``owner`` is the instance or class it is bound to."""

    number: int
    owner: Atom | None = None


@dataclass(frozen=True, slots=True)
class Partial(Atom):
    """``functools.partial``."""

    callee: Value
    positional: tuple[Value, ...]
    named: tuple[tuple[str, Value], ...]


@dataclass(frozen=True, slots=True)
class Class(Atom):
    """A class of the sources."""

    number: int


@dataclass(frozen=True, slots=True)
class Instance(Atom):
    """An object of such a class. ``above``: seen through ``super()``."""

    number: int
    above: bool = False


@dataclass(frozen=True, slots=True)
class External(Atom):
    """Something imported, by its dotted name."""

    name: str


@dataclass(frozen=True, slots=True)
class Handle(Atom):
    """The future of a node that has started. ``function`` is where, ``place`` tells it from others there."""

    function: int
    place: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Coroutine(Atom):
    """A call of a coroutine function that has not started: it does when it is awaited or made a task."""

    function: int
    place: tuple[int, ...]
    callee: int
    loops: tuple[tuple[int, str], ...]
    """The loops it was made in: line and head of each."""
    carried: Value
    """Futures and coroutines among its arguments: it is thought to await them."""


@dataclass(frozen=True, slots=True)
class Items(Atom):
    """A collection of these."""

    contents: Value


@dataclass(frozen=True, slots=True)
class Row(Atom):
    """A tuple or list, element by element."""

    elements: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Record(Atom):
    """A dictionary with text as keys."""

    fields: tuple[tuple[str, Value], ...]


@dataclass(frozen=True, slots=True)
class RetryPolicy(Atom):
    """``Retries(...)``."""

    limit: Value
    delay: Value
    backoff: Value


@dataclass(frozen=True, slots=True)
class Joined(Atom):
    """What ``gather`` and its like return: awaiting it awaits all of these."""

    contents: Value


@dataclass(frozen=True, slots=True)
class Group(Atom):
    """A task group; ``method``: its ``create_task``."""

    place: tuple[int, ...]
    method: bool = False


@dataclass(frozen=True, slots=True)
class Maker(Atom):
    """``step.do("name")`` without a function: a decorator."""

    place: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Decorated(Atom):
    """A function decorated with it."""

    function: int
    place: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Opaque(Atom):
    """An object not understood that may hold these."""

    contents: Value


ANYTHING = Anything()
WIDE = Anything(wide=True)
NOTHING: Value = frozenset()
UNKNOWN: Value = frozenset({ANYTHING})

SCALARS = (Known, Text, Written, RetryPolicy)
AWAITABLE = (Handle, Coroutine)


def known(constant: Any) -> Value:
    """A constant of the language."""
    return frozenset({Known(type(constant).__name__, constant)})


def joined(values: Iterable[Value]) -> Value:
    """One of these."""
    return bounded(frozenset().union(*values))


@lru_cache(maxsize=CACHE)
def bounded(value: Value) -> Value:
    """The value, or one that is less precise if it is too big to compute with.

    Joining over and over must come to an end, so what was given up once is not taken up again.
    """
    if len(value) < 2:
        return value
    kept, constants, rows = set[Atom](), set[Atom](), set[Atom]()
    collected: dict[type[Items | Joined | Opaque], list[Value]] = {}
    for atom in value:
        if isinstance(atom, (Items, Joined, Opaque)):
            collected.setdefault(type(atom), []).append(atom.contents)
        elif isinstance(atom, SCALARS):
            constants.add(atom)
        elif isinstance(atom, (Row, Record, Partial)):
            rows.add(atom)
        else:
            kept.add(atom)
    if WIDE in kept or len(constants) > MAX_CHOICES:
        kept.add(WIDE)
        constants.clear()
    if len(rows) > MAX_CHOICES or (rows and Items in collected):
        collected.setdefault(Items, []).extend(part for atom in rows for part in parts(atom))
        rows.clear()
    for kind, contents in collected.items():
        kept.add(kind(_shallow(joined(contents))))
    return frozenset(kept | constants | rows)


def _shallow(contents: Value) -> Value:
    return flat(contents) if depth(contents) >= MAX_DEPTH else contents


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
    return joined(
        frozenset({atom})
        for atom in atoms(value)
        if not isinstance(atom, (Items, Row, Record, Opaque, Joined))
    )


def items(contents: Value) -> Value:
    """A collection of ``contents``."""
    return frozenset({Items(_shallow(contents))})


def row(elements: list[Value]) -> Value:
    """A tuple or list of these, in order."""
    if len(elements) > MAX_ROW or max(map(depth, elements), default=0) >= MAX_DEPTH:
        return items(joined(elements))
    return frozenset({Row(tuple(elements))})


def opaque(contents: Value) -> Value:
    """Something not understood, that was made from ``contents``."""
    kept = frozenset(
        atom
        for atom in contents
        if not isinstance(atom, (*SCALARS, Anything, External)) and (atom != Opaque(NOTHING))
    )
    if not kept:
        return UNKNOWN
    return frozenset({Opaque(_shallow(kept))})


def elements(value: Value) -> Value:
    """What iterating over it, or asking for one of its elements, gives."""
    found: list[Value] = []
    for atom in value:
        match atom:
            case Items(contents) | Opaque(contents) | Joined(contents):
                found.append(contents)
            case Row() | Record():
                found.extend(parts(atom))
            case Known("str", _) | Known("bytes", _) | Known("tuple", _):
                found.append(UNKNOWN)
            case Anything() | External() | Text():
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
            case Items(contents) | Joined(contents):
                kept.add(Items(without_awaitables(contents)))
            case Opaque(contents):
                kept |= opaque(without_awaitables(contents))
            case Row(elements=each):
                kept.add(Row(tuple(map(without_awaitables, each))))
            case Record(fields=fields):
                kept.add(Record(tuple((name, without_awaitables(held)) for name, held in fields)))
            case Partial(callee, positional, named):
                inside = tuple((name, without_awaitables(held)) for name, held in named)
                kept.add(
                    Partial(without_awaitables(callee), tuple(map(without_awaitables, positional)), inside)
                )
            case _:
                kept.add(atom)
    return bounded(frozenset(kept))


def blurred(value: Value) -> Value:
    """The value when it may have changed meanwhile: constants are no longer known."""
    return frozenset(atom for atom in value if not isinstance(atom, SCALARS)) | UNKNOWN


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
