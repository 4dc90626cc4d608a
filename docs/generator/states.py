"""The statuses of an instance and the transitions between them, from ``orchestrator.workflow.status``."""

from __future__ import annotations

from docs.generator.api import package, prose
from orchestrator.workflow.status import FINISHED, HOLDS_SLOT, TRANSITIONS, Status

_ANEW = (Status.QUEUED, Status.RUNNING)


def diagram() -> str:
    """The table of transitions as a Mermaid state diagram. What a restart adds, from anywhere, is left out."""
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> queued", "    [*] --> running"]
    lines += [
        f"    {old} --> {new}"
        for old, allowed in TRANSITIONS.items()
        for new in sorted(allowed)
        if not (old in FINISHED and new in _ANEW)
    ]
    lines += [f"    {status} --> [*]" for status in sorted(FINISHED)]
    return "\n".join([*lines, "```"])


def table() -> str:
    """What each status means, whether it holds a slot, and what may follow."""
    said = package()["workflow.status.Status"].attributes
    lines = ["| status | meaning | slot | may become |", "|---|---|---|---|"]
    for status in Status:
        meaning = prose(said[status.name].docstring.value if said[status.name].docstring else "")
        follow = ", ".join(f"`{each}`" for each in sorted(TRANSITIONS[status]))
        slot = "yes" if status in HOLDS_SLOT else ""
        lines.append(f"| `{status}` | {meaning} | {slot} | {follow} |")
    return "\n".join(lines)
