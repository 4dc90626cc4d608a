"""The OpenAPI document, from the table of operations and the types of their answers.

Owns: its form. Does not own: what there is (``operations``), the shapes (``schemas``, ``bodies``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from importlib.metadata import version

from pydantic import TypeAdapter

from orchestrator.monitoring.api import records, schemas
from orchestrator.monitoring.api.operations import EVENTS, OPENAPI, OPERATIONS, Operation, Parameter
from orchestrator.monitoring.documents.values import Document

_REFS = "#/components/schemas/"
_REASONS = {
    400: "The request cannot be read.",
    401: "Nobody is logged in.",
    403: "This Flower is read-only, or another site's page caused the request.",
    404: "There is no such thing.",
    409: "The status of the instance does not allow it, or its id is taken.",
    413: "The body, or the value in it, is too long.",
    415: "The body is no JSON.",
    422: "Something in the request does not fit; the message says what.",
    429: "A limit is used up; try again after `Retry-After` seconds.",
    500: "A failure of our own.",
    503: "Postgres is away, or its tables are missing.",
}
_STREAM = (
    "Each message is an Event as JSON, with its event_id as the message's id: a browser that connects again goes on "
    "there. A message of the type `end` says that the instance has ended, one of the type `problem` holds an Error."
)
_OF_ALL = (401, 500, 503)
_OF_WRITES = (400, 403, 413, 415)


_SECURITY = {
    "basic": {"type": "http", "scheme": "basic", "description": "As given to Flower's --basic_auth."},
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": "user",
        "description": "After a login in the browser.",
    },
}


@lru_cache(8)
def document(prefix: str) -> Document:
    """The document of a Flower whose pages are under ``prefix``."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Workflows",
            "version": version("orchestrator-celery"),
            "description": "Durable workflows on Celery: what there is, and what may be done to it. Instants are ISO "
            "8601 in UTC, durations seconds. Values of sensitive steps read `[REDACTED]`.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": prefix or "/"}],
        "paths": _paths(),
        "components": {"schemas": _schemas(), "securitySchemes": _SECURITY},
        "security": [{"basic": []}, {"session": []}, {}],
    }


def _schemas() -> Document:
    """Every type that a path refers to, by its name."""
    answers = {each.answer for each in (*OPERATIONS, EVENTS) if each.answer not in (None, str)}
    asked = {each.body for each in OPERATIONS if each.body is not None}
    answers |= {schemas.Error, records.Event}
    named = [(each.__name__, "serialization", TypeAdapter(each)) for each in answers]
    named += [(each.__name__, "validation", TypeAdapter(each)) for each in asked]
    _, found = TypeAdapter.json_schemas(named, ref_template=_REFS + "{model}")  # type: ignore[arg-type]
    return dict(sorted(found["$defs"].items()))


def _paths() -> Document:
    paths: Document = {}
    for operation in (*OPERATIONS, EVENTS):
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation)
    own = {"description": "This document.", "content": {"application/json": {"schema": {"type": "object"}}}}
    paths[OPENAPI] = {
        "get": {
            "operationId": "openapi",
            "summary": "This document.",
            "responses": {"200": own, **_refusals((401,))},
        }
    }
    return paths


def _operation(operation: Operation) -> Document:
    reasons = (*operation.refuses, *_OF_ALL, *(() if operation.method == "get" else _OF_WRITES))
    written: Document = {
        "operationId": operation.id,
        "summary": operation.about,
        "parameters": [
            *(_in_path(name) for name in re.findall(r"{(\w+)}", operation.path)),
            *map(_in_query, operation.parameters),
        ],
        "responses": {str(operation.status): _answer(operation), **_refusals(reasons)},
    }
    if operation is EVENTS:
        written["parameters"].append(
            {"name": "Last-Event-ID", "in": "header", "required": False, "schema": {"type": "integer"}}
        )
        written["responses"]["204"] = {
            "description": "It has ended, and there is nothing behind Last-Event-ID."
        }
    if operation.body is not None:
        needed = any(field.is_required() for field in operation.body.model_fields.values())
        content = {"application/json": {"schema": _ref(operation.body)}}
        written["requestBody"] = {"required": needed, "content": content}
    return written


def _answer(operation: Operation) -> Document:
    if operation.answer is None:
        return {"description": "Done."}
    schema = {"type": "string"} if operation.answer is str else _ref(operation.answer)
    content: Document = {operation.media: {"schema": schema}}
    if operation is EVENTS:
        content["text/event-stream"] = {"schema": {"type": "string", "description": _STREAM}}
    return {"description": operation.about, "content": content}


def _refusals(statuses: Iterable[int]) -> Document:
    content = {"application/json": {"schema": _ref(schemas.Error)}}
    return {str(each): {"description": _REASONS[each], "content": content} for each in sorted(set(statuses))}


def _in_path(name: str) -> Document:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _in_query(parameter: Parameter) -> Document:
    one: Document = {"type": parameter.kind}
    if parameter.among:
        one["enum"] = list(parameter.among)
    if parameter.default is not None:
        one["default"] = parameter.default
    schema = {"type": "array", "items": one} if parameter.several else one
    return {
        "name": parameter.name,
        "in": "query",
        "required": False,
        "description": parameter.about,
        "schema": schema,
    }


def _ref(named: type) -> Document:
    return {"$ref": _REFS + named.__name__}
