"""What a command answers: one document, for programs as JSON, for people as text.

Owns: the option ``--json``, both forms, and that no value speaks to the terminal. Does not own what a document holds
(each command does).
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from typing import Any

import click
from pydantic_core import to_jsonable_python

from orchestrator.errors import OrchestratorError, RateLimited

Document = dict[str, Any]

_COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a terminal obeys instead of showing it, or cannot be written at all. Errors may quote what strangers sent."""


def answering(render: Callable[[Document], None]) -> Callable[[Callable[..., Document]], Callable[..., None]]:
    """Give a command ``--json``: the document it returns is printed as JSON, or by ``render`` for people.

    With ``--json`` a refusal is a document too, ``{"error": {"code", "message"}}``, and with ``retry_after`` (seconds)
    where it is about a rate.
    """

    def decorate(command: Callable[..., Document]) -> Callable[..., None]:
        @click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
        @functools.wraps(command)
        def answer(*args: Any, as_json: bool, **kwargs: Any) -> None:
            try:
                document = command(*args, **kwargs)
            except (OrchestratorError, TimeoutError) as error:
                if as_json:
                    print_json({"error": _refusal(error)})
                raise
            if as_json:
                print_json(document)
            else:
                render(document)

        return answer

    return decorate


def _refusal(error: OrchestratorError | TimeoutError) -> Document:
    told = {"code": code_of(error), "message": str(error)}
    return told | {"retry_after": error.retry_after} if isinstance(error, RateLimited) else told


def code_of(error: OrchestratorError | TimeoutError) -> str:
    """The stable code of an error that a command may end with."""
    return error.code if isinstance(error, OrchestratorError) else "timeout"


def print_json(document: Document) -> None:
    """One document; whatever a workflow returns becomes JSON by the rules it is stored by."""
    plain = to_jsonable_python(document, bytes_mode="base64", fallback=str)
    click.echo(printable(json.dumps(plain, indent=2, ensure_ascii=False)))


def print_line(value: Any) -> None:
    """One JSON value on one line, written at once: for what comes as a stream."""
    click.echo(shown(value))


def shown(value: Any) -> str:
    """A value of a workflow for people: its JSON on one line."""
    return printable(
        json.dumps(to_jsonable_python(value, bytes_mode="base64", fallback=str), ensure_ascii=False)
    )


def printable(text: str) -> str:
    """Text that moves no cursor, hides nothing, reorders nothing: control characters as JSON escapes. Lines stay."""
    return _COMMANDS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def from_json(text: str) -> Any:
    """A command line argument that holds JSON: the type of such an argument, for click."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(
            f"{text!r:.80} is not JSON ({error}); text needs its double quotes"
        ) from None
