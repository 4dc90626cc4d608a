"""What a name may stand for: the abstract values that the parser computes with.

Owns: the kinds of value, how they are joined, bounded and searched. Does not own where they come from
(``expressions``, ``calls``). A value is a set of atoms, for it may be one of several things; nothing in here is ever
executed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from orchestrator.diagrams.nodes import UNKNOWN as UNKNOWN_TEXT

MAX_CHOICES, MAX_DEPTH, MAX_ROW = 4, 4, 40
"""Constants that a value may be; collections in collections; elements known one by one."""

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


ANYTHING, WIDE = Anything(), Anything(wide=True)
NOTHING: Value = frozenset()
UNKNOWN: Value = frozenset({ANYTHING})

SCALARS = (Known, Text, Written, RetryPolicy)
AWAITABLE = (Handle, Coroutine)
COLLECTIONS = (Items, Row, Record, Partial, Joined)


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
    constants = [atom for atom in value if isinstance(atom, SCALARS)]
    rows = [atom for atom in value if isinstance(atom, (Row, Record, Partial))]
    is_wide = WIDE in value or max(len(constants), len(rows)) > MAX_CHOICES
    kept: set[Atom] = {WIDE} if is_wide else {*constants, *rows}
    collected: dict[type[Items | Joined | Opaque], list[Value]] = {}
    for atom in value:
        if isinstance(atom, (Items, Joined, Opaque)):
            collected.setdefault(type(atom), []).append(atom.contents)
        elif is_wide and isinstance(atom, (Row, Record)):
            collected.setdefault(Items, []).extend(parts(atom))
        elif is_wide and isinstance(atom, Partial):
            collected.setdefault(Opaque, []).append(flat(frozenset({atom})))
        elif not isinstance(atom, (*SCALARS, Row, Record, Partial)):
            kept.add(atom)
    for kind, contents in collected.items():
        kept.add(kind(joined(contents)))
    return frozenset(kept)


def cut(value: Value, levels: int = MAX_DEPTH) -> Value:
    """The value with at most so many collections in collections; what is deeper is not understood."""
    if depth(value) <= levels:
        return value
    kept: set[Atom] = set()
    for atom in value:
        if isinstance(atom, COLLECTIONS) and not levels:
            kept |= opaque(frozenset({atom}))
        else:
            kept.add(_rebuilt(atom, lambda held: cut(held, levels - 1)))
    return bounded(frozenset(kept))


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
    kept = frozenset(atom for atom in flat(contents) if not isinstance(atom, (*SCALARS, Anything, External)))
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
