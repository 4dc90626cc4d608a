"""The nodes of a diagram, and the JSON they become.

Owns: which kinds of node there are, their fields and how each is written down. Does not own where nodes come from
(``parsing``), their order (``ordering``) or how they look (``render``).

Every node has a ``type`` and the ``line`` it stands on. Fields that mark something (``recursive``, ``marked``,
``rollback``, ``label``) are there only where there is something to say.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

Json = dict[str, Any]

VERSION = 1
"""The version of the JSON."""

UNKNOWN = "unknown"
"""Stands for a value that the source alone does not tell."""

DYNAMIC = "${...}"
"""Stands for the part of a name that is only known when the code runs."""


@dataclass(kw_only=True)
class Node:
    """One thing that a workflow does, or a frame around several."""

    type: ClassVar[str] = "node"

    line: int
    starts: int | None = None
    """In which row it starts, counted from 1; ``None`` if it is awaited at once with nothing else unresolved."""
    resolves: int | None = None
    """The row that begins when it has been awaited; ``None`` if it is not awaited, or at once."""

    def json(self) -> Json:
        """The node and all it holds, as plain JSON."""
        document: Json = {"type": self.type, **self.fields(), "line": self.line}
        if self.starts is not None:
            document["starts"] = self.starts
        if self.resolves is not None:
            document["resolves"] = self.resolves
        return document

    def fields(self) -> Json:
        """What only this type of node has."""
        return {}


def written(nodes: Iterable[Node]) -> list[Json]:
    """A list of nodes as plain JSON."""
    return [node.json() for node in nodes]


@dataclass(kw_only=True)
class StepDo(Node):
    """``step.do``. ``nodes`` is what its body would start: steps there are an error that the picture shows."""

    type: ClassVar[str] = "step_do"
    name: str
    config: Json
    nodes: list[Node] = field(default_factory=list)
    rollback: bool = False

    def fields(self) -> Json:
        fields: Json = {"name": self.name, "config": self.config, "nodes": written(self.nodes)}
        return {**fields, "rollback": True} if self.rollback else fields


@dataclass(kw_only=True)
class StepSleep(Node):
    """``step.sleep``."""

    type: ClassVar[str] = "step_sleep"
    name: str
    duration: Any

    def fields(self) -> Json:
        return {"name": self.name, "duration": self.duration}


@dataclass(kw_only=True)
class StepSleepUntil(Node):
    """``step.sleep_until``."""

    type: ClassVar[str] = "step_sleep_until"
    name: str
    timestamp: Any

    def fields(self) -> Json:
        return {"name": self.name, "timestamp": self.timestamp}


@dataclass(kw_only=True)
class StepWaitForEvent(Node):
    """``step.wait_for_event``."""

    type: ClassVar[str] = "step_wait_for_event"
    name: str
    event_type: Any
    timeout: Any
    rollback: bool = False

    def fields(self) -> Json:
        options = {"event_type": self.event_type, "timeout": self.timeout}
        fields: Json = {"name": self.name, "options": options}
        return {**fields, "rollback": True} if self.rollback else fields


@dataclass(kw_only=True)
class StepInvoke(Node):
    """``step.invoke``: a child instance. ``workflow`` is what the source calls it."""

    type: ClassVar[str] = "step_invoke"
    name: str
    workflow: str
    timeout: Any = None

    def fields(self) -> Json:
        fields: Json = {"name": self.name, "workflow": self.workflow}
        return fields if self.timeout is None else {**fields, "timeout": self.timeout}


@dataclass(kw_only=True)
class Loop(Node):
    """``for``, ``while`` or a comprehension; ``label`` is its head as written."""

    type: ClassVar[str] = "loop"
    nodes: list[Node]
    label: str = ""

    def fields(self) -> Json:
        fields: Json = {"nodes": written(self.nodes)}
        return {**fields, "label": self.label} if self.label else fields


@dataclass(kw_only=True)
class Block(Node):
    """Nodes that belong together. ``marked`` says what about them could not be understood.

    ``raises``: what comes after the last of them is an error.
    """

    type: ClassVar[str] = "block"
    nodes: list[Node] = field(default_factory=list)
    label: str = ""
    marked: str = ""
    raises: bool = False

    def fields(self) -> Json:
        fields: Json = {"nodes": written(self.nodes)}
        fields |= {"label": self.label} if self.label else {}
        fields |= {"raises": True} if self.raises else {}
        return {**fields, "marked": self.marked} if self.marked else fields


@dataclass(kw_only=True)
class Parallel(Node):
    """Nodes that are awaited together; ``kind`` is ``all``, ``any``, ``all_settled`` or ``race``."""

    type: ClassVar[str] = "parallel"
    kind: str
    nodes: list[Node]

    def fields(self) -> Json:
        return {"kind": self.kind, "nodes": written(self.nodes)}


@dataclass(kw_only=True)
class Try(Node):
    """``try``; a clause that the source does not have is ``None``. ``else`` stands at the end of the first block."""

    type: ClassVar[str] = "try"
    try_block: Block
    catch_block: Block | None
    finally_block: Block | None

    def fields(self) -> Json:
        blocks = {
            "try_block": self.try_block,
            "catch_block": self.catch_block,
            "finally_block": self.finally_block,
        }
        return {name: None if block is None else block.json() for name, block in blocks.items()}


@dataclass(kw_only=True)
class Branch:
    """One way to go on. ``condition`` is source text, ``None`` for ``else`` and ``case _``.

    ``raises``: it does not go on, but ends with an error.
    """

    condition: str | None
    nodes: list[Node]
    raises: bool = False

    def json(self) -> Json:
        branch: Json = {"condition": self.condition, "nodes": written(self.nodes)}
        return {**branch, "raises": True} if self.raises else branch


@dataclass(kw_only=True)
class If(Node):
    """One branch of several is taken, or none."""

    type: ClassVar[str] = "if"
    branches: list[Branch]

    def fields(self) -> Json:
        return {"branches": [branch.json() for branch in self.branches]}


@dataclass(kw_only=True)
class Switch(Node):
    """``match``; ``discriminant`` is source text."""

    type: ClassVar[str] = "switch"
    discriminant: str
    branches: list[Branch]

    def fields(self) -> Json:
        return {"discriminant": self.discriminant, "branches": [branch.json() for branch in self.branches]}


@dataclass(kw_only=True)
class FunctionCall(Node):
    """A call of a function that reaches a step. ``recursive``: it is being drawn already, further out."""

    type: ClassVar[str] = "function_call"
    function: int
    """Which function, until all names are given."""
    name: str = ""
    recursive: bool = False

    def fields(self) -> Json:
        fields: Json = {"name": self.name}
        return {**fields, "recursive": True} if self.recursive else fields


@dataclass(kw_only=True)
class FunctionDef(Node):
    """What a function does. ``module`` is set if it is not the module of the workflow."""

    type: ClassVar[str] = "function_def"
    name: str
    nodes: list[Node]
    module: str = ""

    def fields(self) -> Json:
        fields: Json = {"name": self.name, "nodes": written(self.nodes)}
        return {**fields, "module": self.module} if self.module else fields


@dataclass(kw_only=True)
class Break(Node):
    """The flow leaves a loop (``kind`` is ``break``) or the function (``return``). ``label``: ``continue``."""

    type: ClassVar[str] = "break"
    kind: str
    label: str = ""

    def fields(self) -> Json:
        return {"kind": self.kind, "label": self.label} if self.label else {"kind": self.kind}


@dataclass(kw_only=True)
class Start(Node):
    """A whole workflow. ``payload`` is what its event is annotated with, as written.

    ``module`` is set if its ``run`` is inherited from another module.
    """

    type: ClassVar[str] = "start"
    class_name: str
    functions: dict[str, FunctionDef]
    nodes: list[Node]
    payload: str | None = None
    module: str = ""

    def fields(self) -> Json:
        functions = {name: function.json() for name, function in self.functions.items()}
        fields: Json = {"class_name": self.class_name, "functions": functions, "nodes": written(self.nodes)}
        fields |= {} if self.payload is None else {"payload": self.payload}
        return {**fields, "module": self.module} if self.module else fields


def graph(start: Start) -> Json:
    """The document: what ``Workflow.diagram()`` returns and the renderers take."""
    return {"version": VERSION, "workflow": start.json()}
