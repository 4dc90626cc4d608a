import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import errors
from orchestrator.errors import ErrorInfo, OrchestratorError, RollbackStatus, StepFailed, WorkflowSignal
from orchestrator.workflow.codec import (
    ErrorRecord,
    decode,
    encode_error,
    ends_retries,
    error_info,
    kind_of,
    revive,
)

CLASSES = [
    each
    for each in vars(errors).values()
    if isinstance(each, type) and issubclass(each, OrchestratorError) and not each.__name__.startswith("_")
]
UNDONE = RollbackStatus("failed", ErrorInfo("A", "b"), (ErrorInfo("A", "b"), ErrorInfo("C", "d")))
SPECIAL = {
    errors.NonRetryableError: ("no funds", "Declined"),
    errors.StepFailed: ("CardError", "declined"),
    errors.NonDeterminismError: ("differs", "do:a:1", "do:b:1"),
    errors.RateLimited: ("slow down", 1.5),
    errors.WorkflowFailed: ("tr-1", ErrorInfo("ValueError", "x"), UNDONE),
    errors.WorkflowTerminated: ("tr-1", UNDONE),
    errors.InstanceExists: ("tr-1",),
    errors.InstanceNotFound: ("tr-1",),
    errors.ServiceUnavailable: ("redis is away", "redis"),
}


class Declined(Exception):
    def __init__(self, code, message):
        super().__init__(code, message)
        assert code != "boom", "__init__ must not run at revival"


class Picky(Exception):
    def __new__(cls, needed):
        return super().__new__(cls, needed)


class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no text")


class NoFunds(errors.NonRetryableError):
    pass


def made(cls):
    return cls(*SPECIAL.get(cls, ("something happened",)))


def attributes(error):
    names = (
        "name",
        "message",
        "expected",
        "came",
        "retry_after",
        "service",
        "instance_id",
        "error",
        "rollback",
    )
    return {name: getattr(error, name) for name in names if hasattr(error, name)}


def twice(error, *classes):
    """The error as revived, checked to be the same when its revival is stored and revived again."""
    known = {kind_of(each): each for each in classes}
    first = revive(encode_error(error), known)
    second = revive(encode_error(first), known)
    assert (type(first), first.args, str(first)) == (type(second), second.args, str(second))
    return first


def test_every_class_has_a_code_of_its_own():
    """API §5: each error has a stable ``code`` and a ``retryable``."""
    codes = [each.code for each in CLASSES]
    assert len(set(codes)) == len(codes)
    assert all(code == code.lower() and code.isidentifier() for code in codes)
    assert all(isinstance(each.retryable, bool) for each in CLASSES)


@pytest.mark.parametrize("cls", CLASSES)
def test_pickled_copied_and_revived_with_all_attributes(cls):
    """Semantics §2.7: our own errors come back as their class, with all they know."""
    error = made(cls)
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error), twice(error)):
        assert type(other) is cls
        assert str(other) == str(error)
        assert attributes(other) == attributes(error)


def test_texts():
    assert str(errors.InstanceExists("a")) == "an instance with the id 'a' exists already"
    assert str(errors.InstanceNotFound("a", "gone")) == "gone"
    assert str(made(errors.WorkflowFailed)) == "instance 'tr-1' failed with ValueError: x"
    assert str(StepFailed("CardError", "declined")) == "CardError: declined"
    assert "orchestrator migrate" in str(errors.SchemaNotMigrated())
    assert str(errors.NonRetryableError()) == ""


def test_a_subclass_with_state_pickles():
    error = NoFunds("x")
    error.balance = 5
    assert pickle.loads(pickle.dumps(error)).balance == 5


def test_signals_are_no_exceptions():
    """API §5: ``except Exception`` in a workflow never swallows a signal."""
    assert issubclass(errors.ReplayDiscarded, WorkflowSignal)
    assert not issubclass(WorkflowSignal, Exception)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x", 1),
        ValueError(),
        KeyError("k"),
        FileNotFoundError(2, "No such file", "/x/y"),
        OSError("plain"),
        SyntaxError("bad"),
        ImportError("no", name="q"),
        TimeoutError("t"),
        AssertionError(),
        Exception("e"),
        ValueError("\0 é 😀"),
        UnicodeDecodeError("utf-8", b"a\xff\xfe>?", 1, 2, "invalid start byte"),
        UnicodeEncodeError("ascii", "é", 0, 1, "ordinal not in range(128)"),
    ],
)
def test_builtins_come_back_as_their_class(error):
    """Semantics §2.7: with arguments and text."""
    again = twice(error)
    assert type(again) is type(error)
    assert again.args == error.args
    assert str(again) == str(error)


def test_a_builtin_without_json_arguments_keeps_its_text_and_the_nearest_class():
    """Semantics §2.7: where its arguments have no JSON form."""
    with pytest.raises(UnicodeDecodeError) as caught:
        (b"\xff" * 65_536).decode()  # errors are kept up to 64 KiB
    again = twice(caught.value)
    assert type(again) is UnicodeError
    assert str(again) == str(caught.value)
    thing = object()
    assert twice(ValueError(thing)).args == (str(thing),)


@pytest.mark.parametrize(
    "error",
    [
        StopIteration(1),
        StopAsyncIteration(),
        KeyboardInterrupt("k"),
        ExceptionGroup("g", [ValueError()]),
        Picky(1),
    ],
)
def test_what_may_not_be_revived_is_a_step_failed(error):
    """Protocols §17: only subclasses of ``Exception``, never ``StopIteration``."""
    again = twice(error, Picky)
    assert type(again) is StepFailed
    assert (again.name, again.message) == (type(error).__name__, str(error))


def test_only_given_classes_are_revived_and_without_init():
    """Protocols §17, semantics §2.7: ``cls.__new__(cls)`` with the recorded arguments."""
    text = encode_error(Declined("51", "no funds"))
    again = revive(text, {"Declined": Declined})
    assert type(again) is Declined
    assert again.args == ("51", "no funds")
    assert type(revive(text.replace('"51"', '"boom"'), {kind_of(Declined): Declined})) is Declined
    unknown = revive(text, {})
    assert isinstance(unknown, StepFailed)
    assert unknown.name == "Declined"


def test_a_class_of_the_same_name_from_elsewhere_is_another():
    """Semantics §2.7: a name alone is no class."""
    text = ErrorRecord("Declined", "x", "elsewhere:Declined").to_json()
    assert type(revive(text, {"Declined": Declined})) is StepFailed
    shadow = type("ValueError", (Exception,), {"__module__": __name__})
    assert type(revive(encode_error(ValueError("x")), {"ValueError": shadow})) is ValueError
    assert type(revive(ErrorRecord("E", "x", "orchestrator.errors:ErrorInfo").to_json(), {})) is StepFailed


def test_which_errors_end_the_retries():
    """Semantics §1.4: ``NonRetryableError`` and its like are final."""
    for error in (NoFunds("x"), errors.SerializationError("x"), errors.RetryDelayError("x")):
        assert ends_retries(encode_error(error))
    for error in (ValueError("x"), errors.StepTimeout("x"), errors.InstanceNotFound("x")):
        assert not ends_retries(encode_error(error))
    assert isinstance(twice(NoFunds("x"), NoFunds), errors.NonRetryableError)


def test_names_people_see():
    """Semantics §2.7: ``StepFailed(name, message)`` and ``NonRetryableError(message, name)`` show the name given."""
    assert error_info(encode_error(errors.NonRetryableError("no", "Declined"))) == ErrorInfo("Declined", "no")
    assert error_info(encode_error(StepFailed("CardError", "no"))) == ErrorInfo("CardError", "no")
    assert error_info(encode_error(NoFunds("no"))) == ErrorInfo("NoFunds", "no")


def test_recording_never_raises():
    """Semantics §2.7: whatever an error is like, it is recorded."""
    assert error_info(encode_error(Mute("x"))) == ErrorInfo("Mute", "")
    long = error_info(encode_error(ValueError("x" * 10**6)))
    assert len(long.message) == 65_536
    assert encode_error(ValueError("\ud800")).isascii()
    assert ErrorRecord.of(ValueError(float("nan"))).args is None


def test_a_record_is_plain_json():
    """Semantics §2.7: a record is data; nothing is unpickled."""
    held = decode(encode_error(errors.RateLimited("slow", 2.0)))
    assert held == {
        "name": "RateLimited",
        "message": "slow",
        "kind": "orchestrator.errors:RateLimited",
        "args": ["slow", 2.0],
    }
    for text in ("{}", "[]", "null", "x"):
        with pytest.raises(errors.SerializationError):
            ErrorRecord.parse(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.sampled_from([ValueError, KeyError, RuntimeError, OSError, Declined, NoFunds, Mute]),
    st.lists(JSON, max_size=3),
)
def test_live_and_replay_see_the_same_error(cls, args):
    """Semantics §1.4, §1.5: an error revived twice is the same."""
    error = cls.__new__(cls)
    error.args = tuple(args)
    text = encode_error(error)
    known = {kind_of(each): each for each in (Declined, NoFunds, Mute)}
    live, replayed = revive(text, known), revive(text, known)
    assert type(live) is type(replayed)
    assert live.args == replayed.args
