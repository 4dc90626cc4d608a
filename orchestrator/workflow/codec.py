"""What may be stored, and how it comes back.

Owns: the JSON text of values and of errors, its limits, how it is read into an annotation or revived as an
exception, and the copies of arguments that a step body receives. Does not own where the text is kept, nor which
limit applies to what.

The text is ASCII, so any database keeps it as it is. Live and replay are told apart by nothing: whoever wants the
value takes it from the very text that is stored.
"""

import builtins
import re
import typing
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, fields, is_dataclass
from functools import lru_cache
from math import isfinite
from typing import Any, NotRequired, Required

from pydantic import BaseModel, ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import SchemaError, from_json, to_json
from typing_extensions import TypeAliasType, TypedDict

from orchestrator import errors
from orchestrator.errors import (
    ErrorInfo,
    NonRetryableError,
    OrchestratorError,
    PayloadTooLarge,
    SerializationError,
    StepFailed,
    rebuilt,
)

MIB = 1_048_576
"""The default limit of one value, in bytes of its text."""

_MAX_DEPTH = 200  # deeper JSON cannot be read back
_LONG_NUMBER = re.compile("[0-9]{4000}")  # an integer over 4,300 digits cannot be read back
_MAX_MESSAGE = 65_536
_BYTES = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
_FLAT = (str, int, float, bool, type(None), bytes)
_SAYS_ITS_ARGS: tuple[Any, ...] = (Exception.__str__, KeyError.__str__)


# --- values ---------------------------------------------------------------------------------------------------


def encode(value: Any, *, what: str, limit: int = MIB) -> str:
    """The value as ASCII JSON text, by pydantic's rules.

    Dataclasses, models, datetime, UUID, Decimal, Enum and the like are written as pydantic writes them, bytes as
    base64 (within models as their own config says), sets and tuples as arrays. ``what`` names the value in
    errors; ``limit`` is in bytes of text.

    Raises ``SerializationError`` for what has no JSON form (NaN and infinities included) or could not be read
    back, ``PayloadTooLarge`` over the limit.
    """
    try:
        text = to_json(value, bytes_mode="base64", ensure_ascii=True).decode("ascii")
    except Exception as error:  # serialisers of the user's own may raise anything
        raise SerializationError(_reason(what, value, error)) from error
    if len(text) > limit:
        raise PayloadTooLarge(f"{what} has {len(text):,} bytes as JSON; at most {limit:,} are allowed")
    if "N" in text or "I" in text or "null" in text:
        _refuse_non_finite(value, text, what)
    if len(text) > _MAX_DEPTH:
        _refuse_unreadable(text, what)
    return text


def decode(text: str, annotation: Any = Any, *, what: str = "the value") -> Any:
    """The value that ``text`` holds, validated into ``annotation``.

    ``Any`` and ``None`` stand for no annotation: plain JSON values. So does an annotation that pydantic cannot
    validate into. Raises ``SerializationError`` if the value (``what`` names it) does not fit, or the text is not JSON.
    """
    adapter = None if annotation is Any or annotation is None else _adapter_of(annotation)
    try:
        return from_json(text) if adapter is None else adapter.validate_json(text)
    except ValidationError as error:
        raise SerializationError(f"{what} does not fit {_spoken(annotation)}: {explained(error)}") from error
    except PydanticUserError as error:
        raise SerializationError(f"{_spoken(annotation)} is not fully defined: {error}") from error
    except ValueError as error:
        raise SerializationError(f"the stored text is not JSON: {error}") from error


def explained(error: ValidationError) -> str:
    """The complaints of a validation in one line, without the values and without links."""
    complaints = error.errors(include_url=False, include_context=False, include_input=False)
    parts = [f"{'.'.join(map(str, each['loc'])) or 'value'}: {each['msg']}" for each in complaints[:10]]
    if len(complaints) > len(parts):
        parts.append(f"and {len(complaints) - len(parts)} more")
    return "; ".join(parts)


def _adapter_of(annotation: Any) -> TypeAdapter[Any] | None:
    try:
        return _adapter(annotation)
    except TypeError:  # an annotation that cannot be hashed
        return _adapter.__wrapped__(annotation)


@lru_cache(4_096)
def _adapter(annotation: Any) -> TypeAdapter[Any] | None:
    try:
        # The alias makes pydantic apply our config to plain dataclasses and TypedDicts as well.
        alias: Any = TypeAliasType("Stored", _understood(annotation))
        return TypeAdapter(alias, config=_BYTES)
    except (PydanticUserError, SchemaError, NameError, TypeError, AttributeError):
        return None


def _understood(annotation: Any) -> Any:
    """The annotation itself, but a ``typing.TypedDict`` as one that pydantic takes before Python 3.12."""
    if type(annotation).__module__ != "typing" or not typing.is_typeddict(annotation):
        return annotation
    keys = {}
    for name, hint in typing.get_type_hints(annotation).items():
        keys[name] = Required[hint] if name in annotation.__required_keys__ else NotRequired[hint]
    make: Any = TypedDict
    return make(annotation.__name__, keys)


def _refuse_non_finite(value: Any, text: str, what: str) -> None:
    if "NaN" in text or "Infinity" in text:  # as a number, or within a string
        try:
            from_json(text, allow_inf_nan=False)
        except ValueError:
            raise SerializationError(f"{what} holds NaN or an infinity, which JSON has not") from None
    # Models write them as null.
    if "null" in text and not isinstance(value, _FLAT) and _holds_non_finite(value, 0):
        raise SerializationError(f"{what} holds NaN or an infinity, which JSON has not")


def _holds_non_finite(value: Any, depth: int) -> bool:
    if isinstance(value, float):
        return not isfinite(value)
    if isinstance(value, _FLAT) or depth > _MAX_DEPTH:
        return False
    return any(_holds_non_finite(child, depth + 1) for _, child in _children(value))


def _refuse_unreadable(text: str, what: str) -> None:
    if text.count("[") + text.count("{") > _MAX_DEPTH or _LONG_NUMBER.search(text):
        try:
            from_json(text)
        except ValueError as error:
            raise SerializationError(
                f"{what} is nested too deeply, or a number is too long: {error}"
            ) from None


def _children(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(f"[{key!r}]", child) for key, child in value.items()]
    if isinstance(value, list | tuple | set | frozenset):
        return [(f"[{index}]", child) for index, child in enumerate(value)]
    if isinstance(value, BaseModel):
        return [(f".{name}", child) for name, child in value]
    if is_dataclass(value) and not isinstance(value, type):
        return [(f".{each.name}", getattr(value, each.name, None)) for each in fields(value)]
    return []


def _reason(what: str, value: Any, error: Exception) -> str:
    path, culprit = _culprit(value, 0)
    said = str(error).removeprefix("Error serializing to JSON: ")
    hint = ""
    if "invalid utf-8" in said:
        hint = " (give the model ConfigDict(ser_json_bytes='base64', val_json_bytes='base64'))"
    elif type(culprit).__name__ == "coroutine":
        hint = " (is an await missing?)"
    at = f" at {path}" if path else ""
    return f"{what} cannot be stored as JSON: {type(culprit).__name__}{at}: {said}{hint}"


def _culprit(value: Any, depth: int) -> tuple[str, Any]:
    """Where in ``value`` the part is that has no JSON form, and that part."""
    for name, child in _children(value) if depth < _MAX_DEPTH else ():
        try:
            to_json(child, bytes_mode="base64")
        except Exception:
            path, culprit = _culprit(child, depth + 1)
            return name + path, culprit
    return "", value


def _spoken(annotation: Any) -> str:
    return annotation.__qualname__ if isinstance(annotation, type) else str(annotation)


# --- errors ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ErrorRecord:
    """An error as it is stored: what people see of it, and what its class is revived from.

    ``name`` and ``message`` are what people see. ``kind`` is ``module:qualname`` of its class. ``args`` are its
    arguments as JSON values, ``None`` if they have no JSON form. ``final`` says that its step is not retried.
    """

    name: str
    message: str
    kind: str
    args: tuple[Any, ...] | None = None
    final: bool = False

    @classmethod
    def of(cls, error: BaseException) -> "ErrorRecord":
        """The record of an error that was raised; never raises itself."""
        name = type(error).__name__
        if isinstance(error, StepFailed | NonRetryableError):
            name = error.name
        final = isinstance(error, OrchestratorError) and error.ends_retries
        return cls(_storable(name), _message_of(error), kind_of(type(error)), _args_of(error), final)

    @classmethod
    def parse(cls, text: str) -> "ErrorRecord":
        """The record that ``text`` holds. Raises ``SerializationError`` if it holds none."""
        try:
            read = from_json(text)
            args = read.get("args")
            kind, final = read.get("kind", ""), read.get("final", False)
            return cls(read["name"], read["message"], kind, None if args is None else tuple(args), final)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SerializationError(f"the stored text is no error record: {error}") from error

    def to_json(self) -> str:
        """The record as ASCII JSON; what is not there is left out."""
        held: dict[str, Any] = {"name": self.name, "message": self.message, "kind": self.kind}
        if self.args is not None:
            held["args"] = self.args
        if self.final:
            held["final"] = True
        return to_json(held, ensure_ascii=True).decode("ascii")


def encode_error(error: BaseException) -> str:
    """The JSON text of an error that was raised: name, message, class and JSON-able arguments; never raises."""
    return ErrorRecord.of(error).to_json()


def error_info(text: str) -> ErrorInfo:
    """Name and message of a recorded error, for people."""
    record = ErrorRecord.parse(text)
    return ErrorInfo(record.name, record.message)


def ends_retries(text: str) -> bool:
    """Whether a recorded error is final: its step is not retried, whatever its limit."""
    return ErrorRecord.parse(text).final


def kind_of(cls: type[BaseException]) -> str:
    """What a record calls a class: ``module:qualname``."""
    return f"{cls.__module__}:{cls.__qualname__}"


def revive(text: str, classes: Mapping[str, type[Exception]]) -> Exception:
    """The exception that a record stands for, without a traceback.

    Its class is a builtin one, one of ours, or one of ``classes`` (by :func:`kind_of` or by plain name); nothing
    is imported. It is made without its ``__init__`` from the recorded arguments, or from the message alone if
    they had no JSON form. Everything else comes back as ``StepFailed``.
    """
    record = ErrorRecord.parse(text)
    args = (record.message,) if record.args is None else record.args
    module, _, qualname = record.kind.partition(":")
    if module == "builtins":
        return _revived_builtin(qualname, args, record)
    cls = _known(record.kind, classes)
    if cls is not None and cls is not StepFailed and _revivable(cls):
        try:
            return rebuilt(cls, args)
        except Exception:  # its __new__ wants more than there is
            return StepFailed(record.name, record.message)
    return StepFailed(record.name, record.message)


def _known(kind: str, classes: Mapping[str, type[Exception]]) -> type[Exception] | None:
    module, _, qualname = kind.partition(":")
    if module == errors.__name__:
        ours = getattr(errors, qualname, None)
        return ours if isinstance(ours, type) else None
    cls = classes.get(kind) or classes.get(qualname.rpartition(".")[2])
    # A file has another module name when it is run than when it is imported.
    same = cls is not None and (cls.__module__ == module or "__main__" in (cls.__module__, module))
    return cls if same else None


def _revivable(cls: type) -> bool:
    return issubclass(cls, Exception) and not issubclass(cls, StopIteration | StopAsyncIteration)


def _revived_builtin(name: str, args: tuple[Any, ...], record: ErrorRecord) -> Exception:
    """A builtin error that says what was recorded: of its own class or, failing that, of the nearest base."""
    cls = getattr(builtins, name, None)
    if not isinstance(cls, type) or not _revivable(cls):
        return StepFailed(record.name, record.message)
    if cls is UnicodeDecodeError and len(args) == 5:  # the only builtin one that holds bytes
        args = (args[0], _bytes_of(args[1]), *args[2:])
    for candidate in (cls, *cls.__mro__):
        if candidate is Exception and cls is not Exception:
            break
        try:
            error: Exception = candidate(*args)
        except Exception:  # such as one whose arguments have no JSON form
            error = StepFailed(record.name)
        if str(error) == record.message or candidate.__str__ in _SAYS_ITS_ARGS:
            return error
        args = (record.message,)
    return StepFailed(record.name, record.message)


def _bytes_of(arg: Any) -> Any:
    try:
        return decode(to_json(arg).decode(), bytes)
    except SerializationError:
        return arg


def _args_of(error: BaseException) -> tuple[Any, ...] | None:
    args: Any = error.args
    if isinstance(error, OSError):  # args leave the filename out
        args = OSError.__reduce__(error)[1]
    try:
        return tuple(from_json(encode(args, what="args", limit=_MAX_MESSAGE)))
    except (SerializationError, PayloadTooLarge):
        return None


def _message_of(error: BaseException) -> str:
    try:
        text = error.message if isinstance(error, StepFailed) else str(error)
    except Exception:  # a __str__ of the user's own
        text = ""
    return _storable(text)


def _storable(text: str) -> str:
    if len(text) > _MAX_MESSAGE:
        text = text[: _MAX_MESSAGE - 1] + "…"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


# --- arguments ------------------------------------------------------------------------------------------------


def copied(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments for one body: lists, dicts, sets, dataclasses and models copied, also within each other.

    Everything else, such as a client or a lock, is handed on as it is.
    """
    for arg in args:
        if type(arg) not in _FLAT:
            seen: dict[int, Any] = {}
            return tuple(_copy(each, seen) for each in args)
    return args


def _copy(value: Any, seen: dict[int, Any]) -> Any:
    if type(value) in _FLAT:
        return value
    if id(value) in seen:
        return seen[id(value)]
    if isinstance(value, list | dict | set):
        return _copy_container(value, seen)
    if type(value) is tuple:
        return tuple([_copy(each, seen) for each in value])
    if isinstance(value, BaseModel) or (is_dataclass(value) and not isinstance(value, type)):
        twin = seen[id(value)] = copy(value)
        names = [each.name for each in fields(value)] if is_dataclass(value) else list(value.__dict__)
        for name in names:
            if hasattr(value, name):  # past frozen: nobody else has the twin yet
                object.__setattr__(twin, name, _copy(getattr(value, name), seen))
        return twin
    return value


def _copy_container(value: Any, seen: dict[int, Any]) -> Any:
    twin = seen[id(value)] = copy(value)  # keeps subclasses such as defaultdict
    if isinstance(value, list):
        twin[:] = [_copy(each, seen) for each in value]
    elif isinstance(value, dict):
        for key, each in value.items():
            twin[key] = _copy(each, seen)
    return twin
