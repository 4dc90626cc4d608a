"""Errors as HTTP has them.

Owns: which status, headers and document each error is answered with. Does not own: how a page or the API writes it.
"""

from __future__ import annotations

import math
from http.client import responses
from typing import Any

from tornado.web import HTTPError

from orchestrator import errors

STATUS_OF: dict[type[Exception], int] = {
    errors.InstanceNotFound: 404,
    errors.UnknownWorkflow: 404,
    errors.InstanceExists: 409,
    errors.InvalidTransition: 409,
    errors.PayloadTooLarge: 413,
    errors.InvalidConfig: 422,
    errors.InvalidInstanceId: 422,
    errors.InvalidName: 422,
    errors.InvalidParams: 422,
    errors.SerializationError: 422,
    errors.RateLimited: 429,
    errors.TooManyQueued: 429,
    errors.SchemaNotMigrated: 503,
    errors.ServiceUnavailable: 503,
}
"""What a caller is told by the status alone; every other error of ours is a 500."""

_CODES = {400: "bad_request", 401: "unauthenticated", 403: "forbidden", 404: "not_found", 405: "method_not_allowed",
          413: "payload_too_large", 415: "unsupported_media_type", 429: "rate_limited"}  # fmt: skip


def status_of(error: BaseException) -> int:
    """The HTTP status that ``error`` is answered with."""
    if isinstance(error, HTTPError):
        return int(error.status_code)
    return next((status for cls, status in STATUS_OF.items() if isinstance(error, cls)), 500)


def document_of(error: BaseException | None, status: int) -> dict[str, Any]:
    """``{"error": {"code", "message"}}``. What is not an error of ours is told by its class alone: its text may hold
    what nobody meant to show."""
    if isinstance(error, errors.OrchestratorError):
        return _document(error.code, str(error))
    if isinstance(error, HTTPError):
        return _document(_CODES.get(status, f"http_{status}"), _told(error) or responses.get(status, ""))
    if error is None:
        return _document(_CODES.get(status, f"http_{status}"), responses.get(status, ""))
    return _document("internal_error", f"{type(error).__name__}; Flower's log has the traceback")


def headers_of(error: BaseException | None) -> dict[str, str]:
    """``Retry-After`` in whole seconds, where the error knows when a second try may succeed."""
    if isinstance(error, errors.RateLimited):
        return {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
    if isinstance(error, errors.TooManyQueued | errors.ServiceUnavailable):
        return {"Retry-After": "5"}
    return {}


def _told(error: HTTPError) -> str:
    """What it says. Tornado keeps the arguments of its text apart, and a `%` doubled where there are none."""
    if not error.log_message:
        return error.reason or ""
    return error.log_message % error.args


def _document(code: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}
