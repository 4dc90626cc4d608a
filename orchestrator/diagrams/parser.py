"""From the source of a workflow to the graph of what it may do. Nothing is executed or imported.

Owns: finding the workflow in its module, repeating the walk until nothing new is learnt, and giving names to
functions. Does not own the walk (``parsing``), nor finding the text of modules (the caller's ``Finder``).
"""

from __future__ import annotations

import ast
from collections import deque
from collections.abc import Iterator, Sequence

from orchestrator.diagrams.flow import contained
from orchestrator.diagrams.nodes import FunctionCall, FunctionDef, Json, Node, Start, StepDo, graph
from orchestrator.diagrams.parsing.atoms import UNKNOWN, Function, Instance, Step
from orchestrator.diagrams.parsing.project import FunctionInfo, Project
from orchestrator.diagrams.parsing.sources import Finder, Module, Source, read, statements
from orchestrator.diagrams.parsing.statements import Statements
from orchestrator.errors import InvalidConfig

MAX_ROUNDS = 24
EVENT_CLASS = "WorkflowEvent"

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _no_sources(name: str) -> Source | None:
    return None


def parse(source: Source, qualname: str, *, line: int | None = None, find: Finder = _no_sources) -> Json:
    """The graph of the workflow that ``qualname`` names in the module ``source``.

    ``qualname`` is Python's: of a function ``(event, step)``, or of a class with such a ``run``. ``line`` (1-based,
    any line of it) chooses among several definitions of that name; the last one is meant otherwise. ``find`` gives
    the sources of other modules; what it does not find is drawn as far as this module tells.

    Raises ``InvalidConfig`` if there is no such definition, or the text is not Python.
    """
    try:
        module = read(source)
    except SyntaxError as error:
        raise InvalidConfig(f"module {source.name!r} is not Python that can be drawn: {error}") from error
    project = Project(find)
    project.add(module)
    path = _path(module, qualname, line)
    if path is None:
        raise InvalidConfig(f"module {source.name!r} has no function or class {qualname!r} in its source")
    walk = Statements(project)
    around, info = _locate(walk, module, path)
    if info is None:
        raise InvalidConfig(
            f"{qualname!r} in module {source.name!r} has no method `run`, so it is no workflow"
        )
    _learn(walk, around, info)
    return graph(_named(project, module, info, path[-1].name))


# -- finding the workflow --------------------------------------------------------------------------------------


def _path(module: Module, qualname: str, line: int | None) -> list[Definition] | None:
    """The definitions on the way to the one of that name, outermost first."""
    names = [name for name in qualname.split(".") if name != "<locals>"]
    found = list(_paths(module.tree.body, names))
    if line is not None:
        found = [
            path for path in found if _first_line(path[-1]) <= line <= (path[-1].end_lineno or line)
        ] or found
    return found[-1] if found else None


def _paths(body: Sequence[ast.stmt], names: Sequence[str]) -> Iterator[list[Definition]]:
    for statement in statements(list(body)):
        if isinstance(statement, Definition) and names and statement.name == names[0]:
            if len(names) == 1:
                yield [statement]
            for rest in _paths(statement.body, names[1:]):
                yield [statement, *rest]


def _first_line(definition: Definition) -> int:
    return min([definition.lineno, *(each.lineno for each in definition.decorator_list)])


def _locate(
    walk: Statements, module: Module, path: list[Definition]
) -> tuple[list[FunctionInfo], FunctionInfo | None]:
    """The functions around the workflow, and the function that is the workflow."""
    project = walk.project
    parent, owner = project.top(module), None
    around: list[FunctionInfo] = []
    for each in path[:-1]:
        if isinstance(each, ast.ClassDef):
            owner = project.class_(each, module, parent)
        else:
            parent, owner = project.function(each, module, parent, owner), None
            around.append(parent)
    last = path[-1]
    if not isinstance(last, ast.ClassDef):
        return around, project.function(last, module, parent, owner)
    instance = Instance(project.class_(last, module, parent).number)
    with walk.within(parent):
        run = walk.attribute(frozenset({instance}), "run", None)
    methods = [atom for atom in run if isinstance(atom, Function)]
    if not methods:
        return around, None
    info = project.functions[methods[0].number]
    if info.node is not None and info.node.args.args:
        info.parameters[(info.node.args.posonlyargs + info.node.args.args)[0].arg] = frozenset({instance})
    return around, info


def _learn(walk: Statements, around: list[FunctionInfo], info: FunctionInfo) -> None:
    """Walk through the workflow, and all it calls, until nothing new is learnt."""
    project = walk.project
    spec = info.node.args if info.node is not None else None
    plain = (
        [each.arg for each in (*spec.posonlyargs, *spec.args) if each.arg not in info.parameters]
        if spec
        else []
    )
    for name, value in zip(plain, (UNKNOWN, frozenset({Step()})), strict=False):
        info.parameters[name] = value
    if spec is not None and len(plain) < 2 and spec.vararg is not None:
        info.parameters[spec.vararg.arg] = frozenset({Step()})
    for _ in range(MAX_ROUNDS):
        project.round += 1
        project.changed = False
        walk.made.clear()
        walk.begun.clear()
        for each in (*around, info):
            walk.learn(each)
            while walk.later:
                walk.learn(walk.later.pop())
        if project.changed:
            continue
        eager = {made for made in walk.made if (made.function, made.place) not in walk.begun} - project.eager
        if not eager:
            return
        project.eager |= eager


def _payload(info: FunctionInfo) -> str | None:
    """What the event of a workflow is annotated with: the X of ``WorkflowEvent[X]``."""
    if info.node is None:
        return None
    for parameter in (*info.node.args.posonlyargs, *info.node.args.args):
        annotation = parameter.annotation
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            try:
                annotation = ast.parse(annotation.value, mode="eval").body
            except (SyntaxError, ValueError):
                continue
        if isinstance(annotation, ast.Subscript):
            name = annotation.value
            last = name.attr if isinstance(name, ast.Attribute) else getattr(name, "id", "")
            if last == EVENT_CLASS:
                try:
                    return ast.unparse(annotation.slice)
                except (RecursionError, ValueError):  # too deep, or a number too long to be written
                    return None
    return None


# -- naming functions ------------------------------------------------------------------------------------------


def _named(project: Project, home: Module, info: FunctionInfo, class_name: str) -> Start:
    """The whole graph; every function in it has a name of its own."""
    names: dict[int, str] = {}
    waiting: deque[FunctionInfo] = deque()
    order: list[FunctionInfo] = []

    def name(call: FunctionCall) -> None:
        callee = project.functions[call.function]
        if callee.number not in names:
            names[callee.number] = _free_name(callee, set(names.values()))
            waiting.append(callee)
            order.append(callee)
        call.name = names[callee.number]

    for call in _calls(info.nodes):
        name(call)
    while waiting:
        for call in _calls(waiting.popleft().nodes):
            name(call)
    functions = {names[each.number]: _definition(each, names[each.number], home) for each in order}
    return Start(
        line=info.line,
        class_name=class_name,
        functions=functions,
        nodes=info.nodes,
        payload=_payload(info),
        module=_elsewhere(info, home),
    )


def _definition(info: FunctionInfo, name: str, home: Module) -> FunctionDef:
    return FunctionDef(line=info.line, name=name, nodes=info.nodes, module=_elsewhere(info, home))


def _elsewhere(info: FunctionInfo, home: Module) -> str:
    """The module of a function, if it is not the workflow's own."""
    return "" if info.module is home else info.module.name


def _free_name(info: FunctionInfo, taken: set[str]) -> str:
    long = f"{info.module.name}.{info.qualname}"
    choices = [info.name, info.qualname, long, f"{long}:{info.line}", f"{long}:{info.line}:{info.number}"]
    return next(each for each in choices if each not in taken)


def _calls(nodes: Sequence[Node]) -> Iterator[FunctionCall]:
    """Every call in these nodes, in order."""
    for node in nodes:
        if isinstance(node, FunctionCall):
            yield node
        yield from _calls(node.nodes if isinstance(node, StepDo) else list(contained(node)))
