"""Operations over HTTP.

Owns: one handler for each path, the parameters of a query, and how an answer is written. Does not own: what is refused
before (``monitoring.flower``), what the operations do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

from orchestrator.errors import InvalidConfig
from orchestrator.monitoring.api.bodies import parsed
from orchestrator.monitoring.api.openapi import document
from orchestrator.monitoring.api.operations import Operation, Parameter
from orchestrator.monitoring.flower import JsonHandler


class OperationHandler(JsonHandler):
    """The operations of one path, by method."""

    def initialize(self, operations: Mapping[str, Operation]) -> None:
        self._operations = operations
        self.SUPPORTED_METHODS = (*(method.upper() for method in operations), "OPTIONS")
        if "get" in operations:
            self.SUPPORTED_METHODS += ("HEAD",)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        if status_code == 405:
            self.set_header("Allow", ", ".join(self.SUPPORTED_METHODS))
        super().write_error(status_code, **kwargs)

    async def get(self, **path: str) -> None:
        await self._answer(self._operations["get"], path)

    head = get

    async def post(self, **path: str) -> None:
        await self._answer(self._operations["post"], path)

    async def delete(self, **path: str) -> None:
        await self._answer(self._operations["delete"], path)

    async def _answer(self, operation: Operation, path: dict[str, str]) -> None:
        query = arguments(operation.parameters, self.request.query)
        body = {} if operation.body is None else {"body": parsed(operation.body, self.json_body())}
        found = await self.offload(operation.call, self.orchestrator, **path, **query, **body)
        if operation.status == 204:
            self.set_status(204)
            self.finish()
        elif operation.media == "application/json":
            self.answer(found, operation.status)
        else:
            self.set_header("Content-Type", f"{operation.media}; charset=UTF-8")
            self.finish(found)


class OpenApiHandler(JsonHandler):
    """``/api/workflows/openapi.json``"""

    async def get(self) -> None:
        self.answer(document(self.link("")))


def arguments(parameters: tuple[Parameter, ...], query: str) -> dict[str, Any]:
    """The parameters that a query gives, and the defaults of the others. Raises ``InvalidConfig`` for what is
    unknown or does not fit."""
    given: dict[str, list[str]] = {}
    try:
        for name, value in parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=1000):
            given.setdefault(name, []).append(value)
    except ValueError as error:
        raise InvalidConfig(f"The query cannot be read: {error}") from None
    known = {each.name: each for each in parameters}
    if unknown := sorted(given.keys() - known.keys()):
        there = ", ".join(known) or "none"
        raise InvalidConfig(f"There is no parameter {unknown[0]!r:.80}; there are: {there}")
    return {each.name: _value(each, given.get(each.name)) for each in parameters}


def _value(parameter: Parameter, given: list[str] | None) -> Any:
    if given is None:
        return [] if parameter.several else parameter.default
    if len(given) > 1 and not parameter.several:
        raise InvalidConfig(f"The parameter {parameter.name} may be given once.")
    values = [_read(parameter, text) for text in given]
    return values if parameter.several else values[0]


def _read(parameter: Parameter, text: str) -> Any:
    if parameter.among and text not in parameter.among:
        raise InvalidConfig(
            f"{parameter.name} is {text!r:.80}; it must be one of {', '.join(parameter.among)}"
        )
    if parameter.kind == "string":
        return text
    try:
        return int(text)
    except ValueError:
        raise InvalidConfig(f"{parameter.name} is {text!r:.80}; it must be a whole number") from None
