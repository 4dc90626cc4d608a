"""What all pictures say about a node, and which nodes stand in one row.

Owns: the words, the rows. Does not own the parts a node falls into (``parts``), nor any picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.diagrams.nodes import Json
from orchestrator.diagrams.parts import Part
from orchestrator.diagrams.tracing import Trace

KINDS = {
    "step_do": "do",
    "step_sleep": "sleep",
    "step_sleep_until": "sleep until",
    "step_wait_for_event": "wait for event",
    "step_invoke": "invoke",
    "function_call": "call",
}
"""The word before a name."""

ROLLBACK = "rollback"
MARKS = {
    "pending": "·",
    "running": "▶",
    "retrying": "↻",
    "waiting": "…",
    "done": "✓",
    "failed": "✗",
    "cancelled": "–",
    "compensating": "↩",
    "compensated": "↩",
    "compensation_failed": "✗",
}
"""What stands for a state where there is only text."""
PARALLEL = {"all": "all of", "any": "any of", "all_settled": "all settled", "race": "first of"}
DEFAULTS: Json = {
    "retries": {"limit": 5, "delay": "10 seconds", "backoff": "exponential"},
    "timeout": "10 minutes",
}


def title(node: Json) -> str:
    """What a node is, in a few words."""
    kind = node["type"]
    match kind:
        case "loop":
            return str(node.get("label") or "loop")
        case "block":
            return str(node.get("marked") or node.get("label") or "block")
        case "parallel":
            return PARALLEL.get(node["kind"], str(node["kind"]))
        case "switch":
            return f"match {node['discriminant']}"
        case "if" | "try":
            return str(kind)
        case "break":
            return str(node.get("label") or node["kind"])
        case "function_call":
            return f"{node['name']}()"
    return str(node["name"])


def details(node: Json) -> list[str]:
    """What else there is to say about a node: configuration that is not the default, marks."""
    found: list[str] = []
    match node["type"]:
        case "step_do":
            found += _config(node["config"])
        case "step_sleep":
            found.append(_duration(node["duration"]))
        case "step_sleep_until":
            found.append(str(node["timestamp"]))
        case "step_wait_for_event":
            options = node["options"]
            found += [f"type {options['event_type']}", f"timeout {options['timeout']}"]
        case "step_invoke":
            found.append(str(node["workflow"]))
    if node.get("rollback"):
        found.append(ROLLBACK)
    if node.get("recursive"):
        found.append("recursive")
    return found


def amount(ran: Mapping[str, Any]) -> str:
    """How many steps ran at a node, of its part of a trace: ``3``, or ``1/3`` where not all are done."""
    counts, total = ran["counts"], ran["total"]
    return str(total) if len(counts) < 2 else f"{counts.get('done', 0)}/{total}"


def laid(trace: Trace | Mapping[str, Any] | None) -> Mapping[str, Any]:
    """A trace as its JSON; without one, as if nothing ran."""
    if trace is None:
        return {"start": "pending", "end": "pending", "nodes": {}, "entered": ()}
    return trace.json() if isinstance(trace, Trace) else trace


def standing(ran: Mapping[str, Any]) -> str:
    """How a node stands, of its part of a trace: ``done``, ``done 3 times``, or ``3 times: 1 done, 2 running``."""
    if len(ran["counts"]) < 2:
        state = str(ran["state"]).replace("_", " ")
        return state if ran["total"] < 2 else f"{state} {ran['total']} times"
    counts = ", ".join(f"{number} {state.replace('_', ' ')}" for state, number in ran["counts"].items())
    return f"{ran['total']} times: {counts}"


def span(node: Json) -> str:
    """``1→2``: in which row a node starts, and which one begins when it has been awaited."""
    if "starts" not in node:
        return ""
    return f"{node['starts']}→{node.get('resolves', '')}"


def rows(part: Part) -> list[list[tuple[str, Json]]]:
    """The nodes of a part, those that start in the same row side by side."""
    found: list[list[tuple[str, Json]]] = []
    before: int | None = None
    for path, node in part.children():
        starts, _ = bounds(node)
        if starts is not None and starts == before:
            found[-1].append((path, node))
        else:
            found.append([(path, node)])
        before = starts
    return found


def bounds(node: Json) -> tuple[int | None, int | None]:
    """In which row a node starts, and which one begins when all of it is resolved; of a frame, by what is in it."""
    if node["type"] in ("loop", "parallel", "block"):
        inside = [bounds(each) for each in node["nodes"]]
        started = [each for each in inside if each[0] is not None]
        if not started or len(started) < len(inside):
            return None, None  # parts of it are awaited one after the other
        ends = [end for _, end in started]
        last = None if None in ends else max(end for end in ends if end is not None)
        return min(start for start, _ in started if start is not None), last
    return node.get("starts"), node.get("resolves")


def is_loose(node: Json, begins: int | None) -> bool:
    """Whether what starts in row ``begins`` does not wait for a node."""
    starts, resolves = bounds(node)
    if starts is None:
        return False
    return resolves is None or (begins is not None and resolves > begins)


def _config(config: Json) -> list[str]:
    retries, found = config["retries"], []
    if retries != DEFAULTS["retries"]:
        if set(retries.values()) == {"unknown"}:
            found.append("retries unknown")
        elif retries["limit"] == 0:
            found.append("no retries")
        else:
            found.append(f"retries {retries['limit']} × {retries['delay']} {retries['backoff']}")
    if config["timeout"] != DEFAULTS["timeout"]:
        found.append(f"timeout {config['timeout']}")
    return found


def _duration(value: Any) -> str:
    """A duration as written; a number is of seconds."""
    return value if isinstance(value, str) else f"{value} second{'' if value == 1 else 's'}"
