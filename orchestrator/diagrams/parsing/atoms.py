"""What a name may stand for: the kinds of abstract value that the parser computes with.

Owns: the kinds. Does not own what is done with them (``values``). A value is a set of atoms, for it may be one of
several things; nothing in here is ever executed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


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
