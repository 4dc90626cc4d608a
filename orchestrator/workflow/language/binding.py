"""How a callable meets its arguments: where ``ctx`` goes, and what it says it returns.

Owns: reading signatures. Does not own: calling (``engine.attempts``) or copying arguments (``codec``).
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Awaitable, Callable, Coroutine
from functools import lru_cache, partial
from types import CodeType
from typing import Any, NamedTuple

from orchestrator.workflow.language.signatures import is_signature

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_VARIABLE = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS
_by_code: dict[tuple[int, str], tuple[CodeType, Any]] = {}
"""What annotations in text mean, by the identity of the code: that of two modules may be equal. It is held, so that no
other gets its id."""


def return_annotation(fn: Callable[..., Any]) -> Any:
    """The type ``fn`` says its result has, ``Any`` if it says nothing or cannot be asked.

    ``Awaitable[X]`` and ``Coroutine[..., X]`` mean ``X``: an awaitable result is awaited.
    """
    annotations = getattr(fn, "__annotations__", None)
    if not annotations or "return" not in annotations or inspect.isclass(fn):
        return Any
    declared = annotations["return"]
    if not isinstance(declared, str):
        return _awaited(declared)
    # Whatever one decorator has made shares the code of its wrapper.
    code = getattr(inspect.unwrap(fn) if hasattr(fn, "__wrapped__") else fn, "__code__", None)
    known = _by_code.get((id(code), declared))
    if known is not None:
        return known[1]
    try:
        resolved = _awaited(typing.get_type_hints(fn)["return"])
    except Exception:  # a name that exists only for type checkers: then the value is plain JSON
        resolved = Any
    if code is not None:
        _by_code[id(code), declared] = code, resolved
    return resolved


def _awaited(declared: Any) -> Any:
    origin = typing.get_origin(declared)
    if origin is Awaitable:
        return typing.get_args(declared)[0]
    if origin is Coroutine:
        return typing.get_args(declared)[2]
    return declared


def may_take_context(fn: Callable[..., Any]) -> bool:
    """False if ``fn`` is a plain function that has no parameter ``ctx``.

    A decorator's wrapper that takes whatever comes has the parameters of what it wraps.
    """
    code = getattr(fn, "__code__", None)
    if code is None or "ctx" in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]:
        return True
    return bool(code.co_flags & _VARIABLE) and hasattr(fn, "__wrapped__")


def call(fn: Callable[..., Any], args: tuple[Any, ...], ctx: Any) -> Any:
    """``fn(*args)``, with ``ctx`` passed to the parameter of that name if there is one.

    The arguments fill the *other* parameters, in order, those that can only be named last. A callable without a
    signature gets no ``ctx``.
    """
    code = getattr(fn, "__code__", None)
    if code is not None and not code.co_kwonlyargcount and not may_take_context(fn):
        return fn(*args)
    if is_signature(fn):  # run on the spot, where no worker is: it holds its arguments itself
        return fn()
    index, positional, keywords = _shape_of(fn)
    named: dict[str, Any] = {}
    if keywords and positional is not None and len(args) > positional:
        named = dict(zip(keywords, args[positional:], strict=False))
        args = args[:positional] + args[positional + len(named) :]
    if index is None:
        return fn(*args, **named)
    if index < 0 or len(args) < index:
        return fn(*args, ctx=ctx, **named)
    return fn(*args[:index], ctx, *args[index:], **named)


class _Shape(NamedTuple):
    """``ctx``: where it stands among those filled by position, -1 if it is keyword only, ``None`` if there is none.
    ``positional``: how many others are filled by position, ``None`` for any number. ``keywords``: the others."""

    ctx: int | None
    positional: int | None
    keywords: tuple[str, ...]


def _shape_of(fn: Callable[..., Any]) -> _Shape:
    try:
        return _shape(fn)
    except TypeError:  # not hashable
        return _shape.__wrapped__(fn)


@lru_cache(maxsize=1024)
def _shape(fn: Callable[..., Any]) -> _Shape:
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):
        return _Shape(None, None, ())
    bound = fn.keywords if isinstance(fn, partial) else {}
    index: int | None = None
    positional: int | None = 0
    keywords = []
    for place, parameter in enumerate(parameters):
        if parameter.name == "ctx":
            index = place if parameter.kind in _POSITIONAL else -1
        elif parameter.kind is inspect.Parameter.KEYWORD_ONLY and parameter.name not in bound:
            keywords.append(parameter.name)
        elif parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            positional = None
        elif parameter.kind in _POSITIONAL and positional is not None:
            positional += 1
    return _Shape(index, positional, tuple(keywords))
