"""What a name, or an attribute, stands for at one point of a walk.

Owns: the point itself (``Frame``, ``State``), looking names up in functions, modules and classes, and assigning.
Does not own evaluating expressions (``expressions``).
"""

from __future__ import annotations

import ast
import builtins
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from orchestrator.diagrams.nodes import Node
from orchestrator.diagrams.ordering import Order
from orchestrator.diagrams.parsing.atoms import (
    NOTHING,
    UNKNOWN,
    Atom,
    Class,
    Decorated,
    External,
    Function,
    Group,
    Handle,
    Instance,
    Items,
    Joined,
    Opaque,
    Record,
    Row,
    Step,
    StepMethod,
    Value,
)
from orchestrator.diagrams.parsing.project import ClassInfo, FunctionInfo, Project
from orchestrator.diagrams.parsing.sources import Binding, Module
from orchestrator.diagrams.parsing.values import elements, items, joined, opaque

STEP_METHODS = ("do", "sleep", "sleep_until", "wait_for_event", "invoke")
MAX_IMPORTS = 20
MAX_DOTTED = 160
MADE = "()"
"""Ends the name of what a call of something imported gave."""


@dataclass
class State:
    """What holds at one point: names, the order of nodes, and the latest run of each decorated step."""

    names: dict[str, Value] = field(default_factory=dict)
    order: Order = field(default_factory=Order)
    ran: dict[Decorated, Handle] = field(default_factory=dict)

    def fork(self) -> State:
        return State(dict(self.names), self.order.fork(), dict(self.ran))

    def join(self, others: Iterable[State]) -> State:
        """After branches, of which this is one: any of them may have been taken."""
        for other in others:
            for name, value in other.names.items():
                held = self.names.get(name)
                self.names[name] = value if held is None else joined([held, value])
            self.ran = {step: run for step, run in self.ran.items() if step in other.ran}
            self.order.join([other.order])
        return self


@dataclass
class Frame:
    """A walk through one function."""

    info: FunctionInfo
    state: State = field(default_factory=State)
    out: list[Node] = field(default_factory=list)
    loops: list[tuple[int, str]] = field(default_factory=list)
    """The loops it is in: line and head of each."""
    tasks: dict[tuple[int, ...], list[Handle]] = field(default_factory=dict)
    """What each task group started."""
    returned: Value = NOTHING

    @property
    def module(self) -> Module:
        return self.info.module


class Scopes(ABC):
    """Looks names up and assigns them, in the frame of the function that is walked through."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.frame: Frame
        self._globals: dict[tuple[str, str], Value] = {}
        self._lineages: dict[tuple[int, int], list[ClassInfo]] = {}

    @abstractmethod
    def value(self, node: ast.expr | None) -> Value:
        """What an expression stands for; what it starts is drawn."""

    @abstractmethod
    def glance(self, node: ast.expr) -> Value:
        """What an expression stands for that was evaluated before: nothing is drawn."""

    @abstractmethod
    def property_value(self, function: Function, node: ast.expr) -> Value:
        """What a property gives."""

    @contextmanager
    def within(self, info: FunctionInfo) -> Iterator[Frame]:
        """Look from another function, drawing nothing in this one."""
        before = getattr(self, "frame", None)
        self.frame = Frame(info)
        try:
            yield self.frame
        finally:
            if before is not None:
                self.frame = before

    # -- names --------------------------------------------------------------------------------------------

    def lookup(self, name: str) -> Value:
        """What a name stands for here."""
        info: FunctionInfo | None = self.frame.info
        held = self.frame.state.names.get(name)
        if held is not None:
            return joined([held, info.names.get(name, NOTHING)]) if info and name in info.shared else held
        while info is not None:
            if info.node is not None and name in info.names:
                return info.names[name]
            info = info.parent
        return self.global_value(self.frame.module, name)

    def global_value(self, module: Module, name: str) -> Value:
        """What a name at the top of a module stands for; builtins are external."""
        key = (module.name, name)
        top = self.project.top(module)
        if key not in self._globals:
            self._globals[key] = UNKNOWN  # for definitions in a circle
            found = [self._bound(each, top) for each in module.bindings.get(name, ())]
            self._globals[key] = joined(found) if found else self._from_stars(module, name)
        return joined([self._globals[key], top.names[name]]) if name in top.names else self._globals[key]

    def _from_stars(self, module: Module, name: str) -> Value:
        for star in module.stars:
            other = self.project.module(star)
            if other is not None and other is not module and name in other.bindings:
                return self.global_value(other, name)
        if hasattr(builtins, name):
            return frozenset({External(f"builtins.{name}")})
        return frozenset({External(f"{module.stars[-1]}.{name}")}) if module.stars else UNKNOWN

    def _bound(self, binding: Binding, around: FunctionInfo, owner: ClassInfo | None = None) -> Value:
        node = binding.node
        if binding.imported:
            return frozenset({External(binding.imported)})
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            return frozenset({Function(self.project.function(node, around.module, around, owner).number)})
        if isinstance(node, ast.ClassDef):
            return frozenset({Class(self.project.class_(node, around.module, around).number)})
        if not isinstance(node, ast.expr) or binding.path is None:
            return UNKNOWN
        with self.within(around):
            found = self.value(node)
        for index in binding.path:
            found = element(found, index)
        return found

    def imported(self, dotted: str) -> Value:
        """What an import binds."""
        return frozenset({External(dotted)})

    def resolve(self, value: Value, tries: int = MAX_IMPORTS) -> Value:
        """The value with everything imported that has a source replaced by what it is there."""
        if not tries or not any(isinstance(atom, External) for atom in value):
            return value
        found = [
            self._imported(atom, tries) if isinstance(atom, External) else frozenset({atom}) for atom in value
        ]
        return joined(found)

    def _imported(self, external: External, tries: int) -> Value:
        names = external.name.split(".")
        for end in range(len(names) - 1, 0, -1):
            first = names[end].removesuffix(MADE)
            module = self.project.module(".".join(names[:end]))
            if module is None or not (first in module.bindings or module.stars):
                continue
            found = self.global_value(module, first)
            if names[end] != first:
                found = self._made(self.resolve(found, tries - 1))
            for name in names[end + 1 :]:
                found = self.attribute(self.resolve(found, tries - 1), name.removesuffix(MADE), None)
                if name.endswith(MADE):
                    found = self._made(self.resolve(found, tries - 1))
            return self.resolve(found, tries - 1) if found != {external} else found
        return frozenset({external})

    def _made(self, value: Value) -> Value:
        """What calling it gave, where nothing about the call matters: objects of a class."""
        return frozenset({Instance(atom.number) for atom in value if isinstance(atom, Class)}) or UNKNOWN

    # -- attributes ---------------------------------------------------------------------------------------

    def attribute(self, value: Value, name: str, node: ast.expr | None) -> Value:
        """What ``value.name`` stands for."""
        return joined(self._attribute(atom, name, node) for atom in value) or UNKNOWN

    def _attribute(self, atom: Atom, name: str, node: ast.expr | None) -> Value:
        match atom:
            case Step() if name in STEP_METHODS:
                return frozenset({StepMethod(name)})
            case External(name=dotted):
                return frozenset({External(f"{dotted}.{name}")}) if len(dotted) < MAX_DOTTED else UNKNOWN
            case Instance():
                return self._member(atom, name, node)
            case Class(number=number):
                return self._class_member(self.project.classes[number], atom, name) or UNKNOWN
            case Opaque(contents=contents):
                return joined([self.attribute(contents, name, node), frozenset({atom})])
            case Group(place=place) if name == "create_task":
                return frozenset({Group(place, method=True)})
            case Items() | Row() | Record() | Joined():
                return opaque(elements(frozenset({atom})))
        return UNKNOWN

    def _member(self, instance: Instance, name: str, node: ast.expr | None) -> Value:
        info = self.project.classes[instance.number]
        lines = self.lineage(info)[1 if instance.above else 0 :]
        whole = Instance(instance.number)
        held = [each.attributes[name] for each in lines if name in each.attributes]
        for each in lines:
            for binding in each.bindings.get(name, ()):
                method = binding.node
                found = self._bound(binding, each.parent or self.project.top(each.module), each)
                if isinstance(method, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    held.append(self._method(method, found, whole, each, node))
                else:
                    held.append(found)
            if name in each.bindings:
                break
        return joined(held) or UNKNOWN

    def _method(
        self, method: ast.FunctionDef | ast.AsyncFunctionDef, found: Value, whole: Instance, info: ClassInfo,
        node: ast.expr | None,
    ) -> Value:  # fmt: skip
        kinds = {_last(decorator) for decorator in method.decorator_list}
        number = next(atom.number for atom in found if isinstance(atom, Function))
        if "staticmethod" in kinds:
            return found
        if "classmethod" in kinds:
            return frozenset({Function(number, Class(info.number))})
        bound = Function(number, whole)
        if kinds & {"property", "cached_property"} and node is not None:
            return self.property_value(bound, node)
        return frozenset({bound})

    def _class_member(self, info: ClassInfo, atom: Class, name: str) -> Value:
        for each in self.lineage(info):
            found = []
            for binding in each.bindings.get(name, ()):
                held = self._bound(binding, each.parent or self.project.top(each.module), each)
                kinds = {_last(decorator) for decorator in getattr(binding.node, "decorator_list", ())}
                if "classmethod" in kinds:
                    held = frozenset(Function(f.number, atom) for f in held if isinstance(f, Function))
                found.append(held)
            if found:
                return joined(found)
        return NOTHING

    def lineage(self, info: ClassInfo) -> list[ClassInfo]:
        """The class and its bases, as far as their sources are known, nearest first."""
        key = (self.project.round, info.number)
        if key not in self._lineages:
            self._lineages[key] = self._bases(info)
        return self._lineages[key]

    def _bases(self, info: ClassInfo) -> list[ClassInfo]:
        found: list[ClassInfo] = []
        waiting = [info]
        while waiting:
            each = waiting.pop(0)
            if each in found:
                continue
            found.append(each)
            with self.within(each.parent or self.project.top(each.module)):
                for base in each.node.bases:
                    plain = base.value if isinstance(base, ast.Subscript) else base
                    if isinstance(plain, (ast.Name, ast.Attribute)):
                        known = self.resolve(self.value(plain))
                        waiting += [self.project.classes[a.number] for a in known if isinstance(a, Class)]
        return found

    # -- assigning ----------------------------------------------------------------------------------------

    def assign(self, target: ast.expr, value: Value) -> None:
        """Bind a target to a value."""
        match target:
            case ast.Name(name):
                self.bind(name, value)
            case ast.Tuple(targets) | ast.List(targets):
                starred = any(isinstance(each, ast.Starred) for each in targets)
                for index, each in enumerate(targets):
                    self.assign(each, elements(value) if starred else element(value, index, len(targets)))
            case ast.Starred(inner):
                self.assign(inner, items(value))
            case ast.Attribute(base, name):
                self._keep(self.value(base), name, value)
            case ast.Subscript(base, index):
                self.value(base)
                self.value(index)
                self.absorb(base, value)

    def reassign(self, target: ast.expr, value: Value) -> None:
        """Bind an attribute or an element that was read just before, as ``+=`` does: nothing in it is drawn again."""
        match target:
            case ast.Attribute(base, name):
                self._keep(self.glance(base), name, value)
            case ast.Subscript(base):
                self.absorb(base, value)

    def _keep(self, owner: Value, name: str, value: Value) -> None:
        """Note what an attribute of these may be."""
        for atom in owner:
            if isinstance(atom, Instance):
                self.project.learn(self.project.classes[atom.number].attributes, name, value)

    def bind(self, name: str, value: Value) -> None:
        """Bind a local name, or one that the function declared ``nonlocal`` or ``global``."""
        self.frame.state.names[name] = value
        self.project.learn(self.frame.info.names, name, value)
        around = self.frame.info.parent
        while around is not None:
            if name in around.shared:
                self.project.learn(around.names, name, value)
            around = around.parent

    def absorb(self, collection: ast.expr, value: Value) -> None:
        """Put a value into a collection that a name, or an attribute of one, stands for. Nothing is drawn."""
        match collection:
            case ast.Name(name):
                held = self.frame.state.names.get(name, NOTHING)
                kept = joined(
                    [frozenset(atom for atom in held if not isinstance(atom, Row)), _unordered(held)]
                )
                self.bind(name, joined([kept, items(value)]))
            case ast.Attribute(base, name) if is_path(base):
                self._keep(self.glance(base), name, items(value))
            case ast.Subscript(base):
                self.absorb(base, items(value))


def is_path(node: ast.expr) -> bool:
    """Whether it is a name, or an attribute of an attribute … of one.

    Only these are looked at twice: with calls in a chain, each link would double the work for all before it.
    """
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name)


def _unordered(value: Value) -> Value:
    """Rows as collections: something is put into them."""
    rows = [joined(atom.elements) for atom in value if isinstance(atom, Row) and atom.elements]
    return items(joined(rows)) if rows else NOTHING


def element(value: Value, index: int, length: int | None = None) -> Value:
    """One element of a tuple or list, if its elements are known one by one; else any of them."""
    found = []
    for atom in value:
        if (
            isinstance(atom, Row)
            and length in (None, len(atom.elements))
            and -len(atom.elements) <= index < len(atom.elements)
        ):
            found.append(atom.elements[index])
        else:
            found.append(elements(frozenset({atom})))
    return joined(found) or UNKNOWN


def _last(decorator: ast.expr) -> str:
    """The last word of a decorator."""
    if isinstance(decorator, ast.Call):
        decorator = decorator.func
    return decorator.attr if isinstance(decorator, ast.Attribute) else getattr(decorator, "id", "")
