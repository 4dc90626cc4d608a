"""What the parser knows about the functions, classes and modules it has come across.

Owns: their identity, and what is joined over all calls and rounds: parameters, attributes, results, whether a
function reaches a step. Does not own walking through one (``statements``). The walk is repeated until nothing
new is learnt (``changed``); everything in here only grows.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field

from orchestrator.diagrams.nodes import Node
from orchestrator.diagrams.parsing.atoms import (
    AWAITABLE,
    NOTHING,
    Atom,
    Coroutine,
    Decorated,
    Function,
    Group,
    Instance,
    Step,
    StepMethod,
    Value,
)
from orchestrator.diagrams.parsing.sources import Binding, Finder, FunctionNode, Module, bindings, read
from orchestrator.diagrams.parsing.values import atoms, joined


@dataclass(eq=False)
class FunctionInfo:
    """A function of the sources. One without a node is the top of a module."""

    number: int
    node: FunctionNode | None
    module: Module
    name: str
    parent: FunctionInfo | None = None
    """The function it is nested in."""
    owner: ClassInfo | None = None
    """The class it is a method of."""
    is_coroutine: bool = False
    is_generator: bool = False
    parameters: dict[str, Value] = field(default_factory=dict)
    names: dict[str, Value] = field(default_factory=dict)
    """All that its names stand for, anywhere in it."""
    shared: set[str] = field(default_factory=set)
    """Names that a function nested in it assigns."""
    returns: Value = NOTHING
    reaches: bool = False
    """Whether it comes to a step."""
    leaves: bool = False
    """Whether something is unresolved when it returns."""
    nodes: list[Node] = field(default_factory=list)
    round: int = 0

    @property
    def line(self) -> int:
        return self.node.lineno if self.node is not None else 1

    @property
    def qualname(self) -> str:
        if self.owner is not None:
            return f"{self.owner.node.name}.{self.name}"
        if self.parent is not None and self.parent.node is not None:
            return f"{self.parent.qualname}.{self.name}"
        return self.name

    @property
    def is_nested(self) -> bool:
        """Whether it may see the names of a function around it."""
        return self.parent is not None and self.parent.node is not None


@dataclass(eq=False)
class ClassInfo:
    """A class of the sources. ``attributes`` is what any method, or other code, assigns to its instances."""

    number: int
    node: ast.ClassDef
    module: Module
    parent: FunctionInfo | None
    bindings: dict[str, list[Binding]]
    attributes: dict[str, Value] = field(default_factory=dict)

    @property
    def is_dataclass(self) -> bool:
        """Whether its fields are the parameters of its constructor; so for models, by their annotations."""
        return "__init__" not in self.bindings and any(
            isinstance(each, ast.AnnAssign) for each in self.node.body
        )


class Project:
    """All modules in reach of a workflow, and what has been learnt about them."""

    def __init__(self, find: Finder) -> None:
        self.functions: list[FunctionInfo] = []
        self.classes: list[ClassInfo] = []
        self.changed = False
        self.round = 0
        self.eager: set[Coroutine] = set()
        """Coroutines that nobody is seen to await: drawn where they are made."""
        self._find = find
        self._carry_round = 0
        self._carriers: dict[Value, bool] = {}
        self._modules: dict[str, Module | None] = {}
        self._tops: dict[Module, FunctionInfo] = {}
        self._by_node: dict[ast.AST, int] = {}
        self._classes_by_node: dict[ast.AST, int] = {}

    def add(self, module: Module) -> None:
        """Make a module known by its name."""
        self._modules[module.name] = module

    def module(self, name: str) -> Module | None:
        """The module of that name, if its source can be found and parsed."""
        if name not in self._modules:
            source = self._find(name)
            try:
                self._modules[name] = None if source is None else read(source)
            except SyntaxError:
                self._modules[name] = None
        return self._modules[name]

    def top(self, module: Module) -> FunctionInfo:
        """The top of a module, as a function that its definitions are nested in."""
        if module not in self._tops:
            info = FunctionInfo(len(self.functions), None, module, "<module>")
            self.functions.append(info)
            self._tops[module] = info
        return self._tops[module]

    def function(
        self,
        node: FunctionNode,
        module: Module,
        parent: FunctionInfo,
        owner: ClassInfo | None = None,
        name: str = "",
    ) -> FunctionInfo:
        """The function that a node defines."""
        number = self._by_node.get(node)
        if number is None:
            number = self._by_node[node] = len(self.functions)
            info = FunctionInfo(number, node, module, name or getattr(node, "name", "lambda"), parent, owner)
            info.is_coroutine = isinstance(node, ast.AsyncFunctionDef)
            info.is_generator = any(isinstance(each, (ast.Yield, ast.YieldFrom)) for each in _own(node))
            self._share(info)
            self.functions.append(info)
        return self.functions[number]

    def class_(self, node: ast.ClassDef, module: Module, parent: FunctionInfo) -> ClassInfo:
        """The class that a node defines."""
        number = self._classes_by_node.get(node)
        if number is None:
            number = self._classes_by_node[node] = len(self.classes)
            self.classes.append(ClassInfo(number, node, module, parent, bindings(node.body, module)))
        return self.classes[number]

    def learn(self, known: dict[str, Value], name: str, value: Value) -> None:
        """Join ``value`` to what is known under a name."""
        before = known.get(name)
        after = value if before is None else joined([before, value])
        if after != before:
            known[name] = after
            self.changed = True

    def carries(self, value: Value) -> bool:
        """Whether a step could be reached through the value."""
        if self._carry_round != self.round:
            self._carry_round = self.round
            self._carriers.clear()
        if value not in self._carriers:
            self._carriers[value] = self._carries(value, set())
        return self._carriers[value]

    def _carries(self, value: Value, seen: set[int]) -> bool:
        return any(self._is_carrier(atom, seen) for atom in atoms(value))

    def _is_carrier(self, atom: Atom, seen: set[int]) -> bool:
        match atom:
            case Step() | StepMethod() | Group() | Decorated():
                return True
            case Function(number=number):
                return self.functions[number].is_nested
            case Instance(number=number) if number not in seen:
                seen.add(number)
                held = self.classes[number].attributes.values()
                nested = self.classes[number].parent
                return (nested is not None and nested.node is not None) or any(
                    self._carries(v, seen) for v in held
                )
        return isinstance(atom, AWAITABLE)

    def _share(self, info: FunctionInfo) -> None:
        """Note the names of the functions around it that this one assigns."""
        for node in _own(info.node):
            if isinstance(node, (ast.Nonlocal, ast.Global)):
                around = info.parent if isinstance(node, ast.Nonlocal) else self.top(info.module)
                while around is not None:
                    around.shared.update(node.names)
                    around = around.parent


def _own(function: ast.AST | None) -> list[ast.AST]:
    """The nodes of a function, without those of the functions and classes in it."""
    found: list[ast.AST] = []
    waiting = list(ast.iter_child_nodes(function)) if function is not None else []
    while waiting:
        node = waiting.pop()
        found.append(node)
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
            waiting.extend(ast.iter_child_nodes(node))
    return found
