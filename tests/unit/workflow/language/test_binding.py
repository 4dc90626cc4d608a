"""How callables meet their arguments, and what they say they return."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from functools import partial, wraps
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from orchestrator.workflow.language.binding import call, return_annotation

if TYPE_CHECKING:
    from decimal import Decimal

CTX = object()


class Service:
    def method(self, a: int, ctx: Any) -> list[Any]:
        return [a, ctx]

    @staticmethod
    def static(ctx: Any, a: int) -> list[Any]:
        return [ctx, a]

    @classmethod
    def of_class(cls, a: int, *, ctx: Any) -> list[Any]:
        return [a, ctx]

    def __call__(self, ctx: Any, a: int) -> list[Any]:
        return [ctx, a]


def traced(fn: Any) -> Any:
    """What decorators of applications look like."""

    @wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return wrapper


def narrowed(fn: Any) -> Any:
    @wraps(fn)
    def wrapper(a: int) -> Any:
        return fn(CTX, a)

    return wrapper


def local_ctx(a: int) -> int:
    ctx = a  # a local of that name is no parameter
    return ctx


@pytest.mark.parametrize(
    ("fn", "args", "expected"),
    [
        (lambda a, b: [a, b], (1, 2), [1, 2]),
        (lambda ctx: [ctx], (), [CTX]),
        (lambda ctx, a: [ctx, a], (1,), [CTX, 1]),
        (lambda a, ctx: [a, ctx], (1,), [1, CTX]),
        (lambda a, ctx, b: [a, ctx, b], (1, 2), [1, CTX, 2]),
        (lambda a, ctx, b=5: [a, ctx, b], (1,), [1, CTX, 5]),
        (lambda a=7, ctx=None: [a, ctx], (), [7, CTX]),
        (lambda a, *, ctx: [a, ctx], (1,), [1, CTX]),
        (lambda *args, ctx: [*args, ctx], (1, 2, 3), [1, 2, 3, CTX]),
        (lambda a, *, b: [a, b], (1, 2), [1, 2]),
        (lambda a, ctx, *, b, c=9: [a, ctx, b, c], (1, 2), [1, CTX, 2, 9]),
        (lambda a, *, ctx, b, c: [a, ctx, b, c], (1, 2, 3), [1, CTX, 2, 3]),
        (lambda *args, b=2: [*args, b], (1, 3), [1, 3, 2]),
        (lambda *args: list(args), (1, 2), [1, 2]),
        (lambda **kw: sorted(kw), (), []),
        (local_ctx, (4,), 4),
        (Service().method, (1,), [1, CTX]),
        (Service.static, (1,), [CTX, 1]),
        (Service.of_class, (1,), [1, CTX]),
        (Service(), (1,), [CTX, 1]),
        (partial(lambda a, ctx, b: [a, ctx, b], 1), (2,), [1, CTX, 2]),
        (partial(lambda a, b: [a, b], b=2), (1,), [1, 2]),
        (partial(lambda a, b, *, c: [a, b, c], 1, c=3), (2,), [1, 2, 3]),
        (traced(lambda a, ctx: [a, ctx]), (1,), [1, CTX]),
        (traced(traced(lambda ctx, a, *, b: [ctx, a, b])), (1, 2), [CTX, 1, 2]),
        (traced(lambda *args: list(args)), (1, 2), [1, 2]),
        (traced(Service().method), (1,), [1, CTX]),
        (narrowed(lambda ctx, a: [ctx, a]), (1,), [CTX, 1]),
        (dict, ([("a", 1)],), {"a": 1}),
        (max, (1, 2), 2),
        (str.upper, ("a",), "A"),
    ],
)
def test_ctx_goes_where_it_stands_and_the_rest_in_order(
    fn: Any, args: tuple[Any, ...], expected: Any
) -> None:
    """Protocols §17: ``*args`` fill the parameters other than ``ctx``; without a signature there is no ctx."""
    assert call(fn, args, CTX) == expected


def test_a_callable_that_cannot_be_hashed() -> None:
    """Caching signatures must not get in the way."""

    class Unhashable(list[int]):
        def __call__(self, a: int, ctx: Any) -> list[Any]:
            return [a, ctx]

    assert call(Unhashable(), (1,), CTX) == [1, CTX]


def test_wrong_arguments_say_so() -> None:
    """Python's own words."""
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        call(lambda a, b: None, (1,), CTX)


def test_async_functions_give_their_coroutine() -> None:
    """Protocols §17: the caller awaits it."""

    async def fn(a: int, ctx: Any) -> list[Any]:
        return [a, ctx]

    assert asyncio.run(call(fn, (1,), CTX)) == [1, CTX]


def number() -> int: ...


def text() -> str: ...


def nothing() -> None: ...


def silent(): ...


def unknown() -> Decimal: ...


def awaitable() -> Awaitable[list[int]]: ...


def coroutine() -> Coroutine[Any, Any, dict[str, int]]: ...


async def asynchronous() -> list[int]: ...


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (number, int),
        (text, str),
        (nothing, type(None)),
        (silent, Any),
        (unknown, Any),
        (awaitable, list[int]),
        (coroutine, dict[str, int]),
        (asynchronous, list[int]),
        (lambda: 1, Any),
        (max, Any),
        (Service().method, list[Any]),
        (Service, Any),
        (partial(number), Any),
    ],
)
def test_what_a_callable_says_it_returns(fn: Any, expected: Any) -> None:
    """Semantics §2.6: its return annotation, with awaitables unwrapped; ``Any`` where it says nothing."""
    assert return_annotation(fn) == expected
    assert return_annotation(fn) == expected  # from the cache


def test_closures_over_different_types_are_told_apart() -> None:
    """One code object may stand for many functions, with other types in sight."""

    def make(kind: type) -> Any:
        def fn():
            return None

        fn.__annotations__["return"] = kind
        return fn

    assert [return_annotation(make(kind)) for kind in (int, str)] == [int, str]


MODULE = """
from __future__ import annotations
class Result: ...
def load() -> Result: ...
"""


def module(name: str, **names: Any) -> Any:
    made = ModuleType(name)
    vars(made).update(names)
    exec(compile(MODULE, f"{name}.py", "exec"), vars(made))
    return made


@pytest.mark.parametrize("decorator", [lambda fn: fn, traced])
def test_a_text_annotation_means_what_its_own_module_says(decorator: Any) -> None:
    """Semantics §2.6: a copied file has equal code, and wrappers of one decorator share theirs."""
    old, new = module("old"), module("new")
    assert old.load.__code__ == new.load.__code__
    for each in (old, new, old):
        assert return_annotation(decorator(each.load)) is each.Result


def test_a_text_annotation_of_a_local_class() -> None:
    """A name that cannot be found is plain JSON."""

    class Local: ...

    def fn() -> Local: ...

    assert return_annotation(fn) in (Any, Local)
