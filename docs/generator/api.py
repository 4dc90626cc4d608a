"""The public names: signatures and docstrings, read from the source by griffe; nothing is imported for it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import griffe

GROUPS: dict[str, tuple[str, ...]] = {
    "Defining a workflow": (
        "workflow", "WorkflowEvent", "ReceivedEvent", "Retries", "RollbackPolicy", "Schedule",
    ),
    "Steps": ("WorkflowStep", "StepContext", "RollbackContext"),
    "Creating and steering instances": ("Workflow", "WorkflowInstance"),
    "What is answered": (
        "Status", "InstanceStatus", "RollbackStatus", "ErrorInfo", "StepRecord", "Attempt", "BatchResult", "BatchError",
        "LifecycleEvent", "AuditRecord", "Page", "DeleteResult", "ScheduleRecord",
    ),
    "Configuration": ("Orchestrator", "configure", "Settings"),
}  # fmt: skip
"""Names of ``orchestrator`` by what they are for; errors have a page of their own."""

BETWEEN_ROOMS = {
    "Retries": "delay_s max_delay_s wait_s",
    "Schedule": "instance_id following latest check",
    "Workflow": "definition",
    "RollbackStatus": "of",
    "ErrorInfo": "of",
    "Orchestrator": "engine lanes publisher news waiters followers now hint hint_aside forked",
    "WorkflowEnvironment": "drive move fakes_of deliver fake_event remove",
    "NeverIdle": "message",
    "StillWaiting": "message",
    "UnusedMock": "message",
}
"""Members that other rooms of the package use, and applications need not know."""

INTRODUCTION = """# Python API

What `from orchestrator import …` gives. Durations are a `timedelta`, a number of seconds, or text such as
`"30 seconds"`, `"2 hours"`, `"7 days"` (a month is 30 days, a year 365).

A verb with a twin for asyncio has it under the same name with an `a` before it, with the same arguments:
`await transfer.acreate(…)`, `await instance.astatus()`, `async for event in instance.asubscribe()`.
Errors stand in [errors.md](errors.md), settings in [settings.md](settings.md); how to use the testing
kit stands in the [guide on testing](../guides/testing.md).
"""


@cache
def package() -> griffe.Module:
    """The package as griffe reads it from this checkout."""
    root = Path(__file__).resolve().parents[2]
    return griffe.load("orchestrator", search_paths=[root], allow_inspection=False)


def page() -> str:
    """The page of the public names."""
    lines = [INTRODUCTION]
    grouped = {name for names in GROUPS.values() for name in names}
    groups = dict(GROUPS)
    if rest := tuple(name for name in exported() if name not in grouped and not _is_error(name)):
        groups["More"] = rest
    for title, names in groups.items():
        lines.append(f"## {title}\n")
        for name in names:
            if name in exported():
                lines += _entry(name, found(name))
    lines.append("## Testing: `orchestrator.testing`\n")
    kit = package()["testing"]
    for name in _all(kit):
        lines += _entry(name, _target(kit.members[name]))
    return "\n".join(lines)


@cache
def exported() -> tuple[str, ...]:
    """The names in the package's ``__all__``."""
    return _all(package())


def found(name: str) -> griffe.Object:
    """What an exported name stands for."""
    member = package().members[name]
    # The submodule `workflow` and the decorator share a name: what the import statement binds is meant.
    if name == "workflow":
        member = package()["client.workflow.workflow"]
    return _target(member)


def prose(text: str | None) -> str:
    """A docstring as Markdown: its doubled backticks and roles are single backticks there."""
    plain = inspect.cleandoc(text or "").replace("``", "`")
    for role in (":func:", ":class:", ":meth:"):
        plain = plain.replace(role + "`~", "`").replace(role, "")
    return plain


def _all(module: griffe.Object) -> tuple[str, ...]:
    return tuple(str(name).strip("'\"") for name in module.exports or ())


def _target(member: griffe.Object | griffe.Alias) -> griffe.Object:
    return member.final_target if isinstance(member, griffe.Alias) else member


def _entry(name: str, thing: griffe.Object) -> Iterator[str]:
    assert isinstance(thing, griffe.Class | griffe.Function), f"{name} is neither a class nor a function"
    yield f"### {name}\n"
    if isinstance(thing, griffe.Function):
        yield _code(_signature(thing, drop_self=False))
        yield _documented(thing)
        return
    if name == "Settings":
        yield "One frozen object with everything a deployment may set: [settings.md](settings.md).\n"
        yield from _method(name, thing.members["from_env"])
        return
    fields = _fields(thing)
    enum = any(str(base).endswith("Enum") for base in thing.bases)
    if not enum and (constructor := _constructor(thing, fields)):
        yield _code(constructor)
    yield _documented(thing)
    for field in fields:
        yield _field(field, enum)
    if fields:
        yield ""
    for method in _methods(thing):
        yield from _method(name, method)


def _method(owner: str, method: griffe.Function | griffe.Attribute) -> Iterator[str]:
    yield f"#### {owner}.{method.name}\n"
    if isinstance(method, griffe.Function):
        yield _code(_signature(method, drop_self=True))
    yield _documented(method)


def _documented(thing: griffe.Object) -> str:
    return prose(thing.docstring.value if thing.docstring else None) + "\n"


def _code(text: str) -> str:
    quoted = text.replace("'", '"')  # as the formatter has it
    return f"```python\n{quoted}\n```\n"


def _signature(function: griffe.Function, *, drop_self: bool) -> str:
    parts, star = [], False
    for parameter in function.parameters:
        if drop_self and parameter.name in ("self", "cls"):
            continue
        kind = parameter.kind
        if kind is griffe.ParameterKind.keyword_only and not star:
            parts.append("*")
            star = True
        star = star or kind is griffe.ParameterKind.var_positional
        mark = {griffe.ParameterKind.var_positional: "*", griffe.ParameterKind.var_keyword: "**"}.get(
            kind, ""
        )
        text = mark + parameter.name + (f": {parameter.annotation}" if parameter.annotation else "")
        if parameter.default is not None and not mark:
            default = "..." if str(parameter.default).startswith("_") else parameter.default
            text += f" = {default}" if parameter.annotation else f"={default}"
        parts.append(text)
    return _call(
        "async def " if "async" in function.labels else "def ", function.name, parts, function.returns
    )


def _call(start: str, name: str, parts: list[str], returns: object) -> str:
    end = f" -> {returns}" if returns is not None else ""
    line = f"{start}{name}({', '.join(parts)}){end}: ..."
    if len(line) <= 100:
        return line
    return f"{start}{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){end}: ..."


def _fields(thing: griffe.Class) -> list[griffe.Attribute]:
    """The public data of a class, in the order of its source."""
    return [
        each
        for each in thing.attributes.values()
        if each.is_public
        and "property" not in each.labels
        and not each.name.startswith("_")
        and each.name not in BETWEEN_ROOMS.get(thing.name, "").split()
    ]


def _constructor(thing: griffe.Class, fields: list[griffe.Attribute]) -> str:
    if "dataclass" in thing.labels:
        parts = []
        for each in fields:
            value = (
                "" if each.value is None else " = ..." if "field(" in str(each.value) else f" = {each.value}"
            )
            parts.append(f"{each.name}: {each.annotation}{value}")
        return f"class {thing.name}:\n" + "\n".join(f"    {part}" for part in parts)
    init = thing.members.get("__init__")
    if isinstance(init, griffe.Function) and thing.name == "Orchestrator":
        return (
            _signature(init, drop_self=True)
            .replace("def __init__", f"def {thing.name}")
            .replace(" -> None", "")
        )
    return ""


def _field(field: griffe.Attribute, enum: bool) -> str:
    said = prose(field.docstring.value if field.docstring else None).replace("\n", " ")
    shown = f"`{field.value}`".replace("'", "") if enum else f"`{field.name}`"
    return f"- {shown}: {said}" if said else f"- {shown}"


def _methods(thing: griffe.Class) -> list[griffe.Function | griffe.Attribute]:
    """Public methods and properties, those of our own bases included; twins stand with the verb they belong to."""
    seen: dict[str, griffe.Function | griffe.Attribute] = {}
    for owner in (thing, *thing.mro()):
        for name, member in owner.members.items():
            is_property = isinstance(member, griffe.Attribute) and "property" in member.labels
            if (isinstance(member, griffe.Function) or is_property) and not name.startswith("_"):
                seen.setdefault(name, member)
    hidden = BETWEEN_ROOMS.get(thing.name, "").split()
    return [
        each
        for name, each in seen.items()
        if name not in hidden and not (name.startswith("a") and name[1:] in seen)
    ]


def _is_error(name: str) -> bool:
    from docs.generator import errors

    return name in errors.classes()
