"""Every error: its code, whether it may be retried, and what it says."""

from __future__ import annotations

import inspect

from docs.generator.api import prose
from orchestrator import errors

INTRODUCTION = """# Errors

All derive from `OrchestratorError`; import them from `orchestrator`, or from `orchestrator.errors`. `.code` is stable
over releases, and is what the command line and batches show. *Retryable* says whether the same call, unchanged, may
succeed later. *Ends retries* says that a step whose body raises it is not retried, whatever its limit.
"""


def classes() -> dict[str, type[errors.OrchestratorError]]:
    """The error classes by name, in the order of the source; private ones left out."""
    return {
        name: each
        for name, each in vars(errors).items()
        if inspect.isclass(each) and issubclass(each, errors.OrchestratorError) and not name.startswith("_")
    }


def page() -> str:
    """The page of the errors."""
    lines = [INTRODUCTION, "| error | code | retryable | ends retries | |", "|---|---|---|---|---|"]
    for name, each in classes().items():
        said = prose(inspect.getdoc(each)).replace("\n\n", " ").replace("\n", " ").replace("|", "\\|")
        lines.append(
            f"| `{name}` | `{each.code}` | {_mark(each.retryable)} | {_mark(each.ends_retries)} | {said} |"
        )
    return "\n".join(lines)


def _mark(yes: bool) -> str:
    return "yes" if yes else ""
