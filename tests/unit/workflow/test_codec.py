import dataclasses
import enum
import math
import typing
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import PayloadTooLarge, SerializationError
from orchestrator.workflow.codec import MIB, copied, decode, encode


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Order:
    id: UUID
    amount: Decimal
    at: datetime
    raw: bytes = b""
    tags: set[int] = dataclasses.field(default_factory=set)
    pair: tuple[int, str] = (0, "")
    colour: Colour = Colour.RED
    nested: "Order | None" = None


class Model(pydantic.BaseModel):
    value: float | None = None
    order: Order | None = None
    wait: timedelta = timedelta(0)


class Row(typing.TypedDict):
    raw: bytes
    note: typing.NotRequired[str]


class Raw(pydantic.BaseModel):
    raw: bytes


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=30,
)
ORDERS = st.builds(
    Order,
    id=st.uuids(),
    amount=st.decimals(allow_nan=False, allow_infinity=False),
    at=st.datetimes(timezones=st.just(UTC)),
    raw=st.binary(),
    tags=st.sets(st.integers()),
    pair=st.tuples(st.integers(), st.text(st.characters(exclude_categories=["Cs"]))),
)


def same(one, other):
    """Equal, also in types: 1 is not 1.0 and not True."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@given(JSON)
def test_plain_json_round_trips(value):
    """Semantics §2.6: JSON comes back as it was, in value and type, from ASCII text."""
    text = encode(value, what="result")
    assert text.isascii()
    assert same(decode(text), value)
    assert encode(decode(text), what="result") == text


@given(ORDERS)
def test_a_dataclass_round_trips_and_replay_sees_what_live_saw(order):
    """Semantics §1.5, §2.6: what was read from the record is recorded alike."""
    text = encode(order, what="result")
    live = decode(text, Order)
    assert live == order
    assert decode(encode(live, what="result"), Order) == live


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (1e22, float),
        (Decimal("1.10"), Decimal),
        (b"\x00\xff\xfe", bytes),
        ([b"\xff"], list[bytes]),
        ({"raw": b"\xff\x00"}, Row),
        ({1, 2}, set[int]),
        ((1, "a"), tuple[int, str]),
        (Colour.RED, Colour),
        (date(2026, 1, 2), date),
        (timedelta(seconds=1.5), timedelta),
        (UUID(int=7), UUID),
        (Model(value=1.5, wait=timedelta(days=1)), Model),
        (None, type(None)),
        (None, Model | None),
        ({"a": Model()}, dict[str, Model]),
    ],
)
def test_typed_values_round_trip(value, annotation):
    """Semantics §2.6: pydantic's rules: datetime, UUID, Decimal, Enum, bytes as base64, sets and tuples as arrays."""
    again = decode(encode(value, what="result"), annotation)
    assert again == value
    assert type(again) is type(value)


def test_floats_stay_floats_and_integers_integers():
    """Semantics §2.6: ``1e22`` is no integer, ``\\u0000`` a character like any other."""
    for value in (1e22, 1e16, 5.0, -0.0, 5e-324, 2**64, -(10**400)):
        again = decode(encode(value, what="result"))
        assert type(again) is type(value)
        assert again == value
    assert math.copysign(1, decode(encode(-0.0, what="result"))) == -1
    assert decode(encode("\u0000", what="result")) == "\u0000"
    assert decode(encode("NaN Infinity null", what="result")) == "NaN Infinity null"
    assert decode(encode(None, what="result"), None) is None


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        -math.inf,
        [{"a": math.nan}],
        ["NaN", math.nan],
        Model(value=math.nan),
        [None, {"m": [Model(value=math.inf)]}],
        Order(UUID(int=0), math.inf, datetime(2026, 1, 1, tzinfo=UTC)),
    ],
)
def test_nan_and_infinities_are_refused_everywhere(value):
    """Semantics §2.6: in values, models and dataclasses, at any depth."""
    with pytest.raises(SerializationError, match="result of step 'x'"):
        encode(value, what="result of step 'x'")


def test_unserialisable_values_are_named_with_their_place():
    """Semantics §2.6: ``SerializationError`` says which part has no JSON form."""
    with pytest.raises(SerializationError, match=r"result .*object at \['a'\]\[1\]\.raw"):
        encode(
            {"a": [1, Order(UUID(int=0), Decimal(1), datetime(2026, 1, 1, tzinfo=UTC), object())]},
            what="result",
        )

    async def body():
        return 1

    coroutine = body()
    with pytest.raises(SerializationError, match="is an await missing"):
        encode([coroutine], what="result")
    coroutine.close()
    for value in ("\ud800", {"\ud800": 1}, lambda: 1, int, ValueError("x")):
        with pytest.raises(SerializationError):
            encode(value, what="result")
    with pytest.raises(SerializationError, match="ser_json_bytes"):
        encode(Raw.model_construct(raw=b"\xff"), what="result")
    circular = []
    circular.append(circular)
    with pytest.raises(SerializationError):
        encode(circular, what="result")


@pytest.mark.parametrize("depth", [1, 100, 200, 201, 230, 254, 255, 1_000])
def test_whatever_is_stored_can_be_read_back(depth):
    """Semantics §2.6: what is nested too deeply to be read is not stored."""
    value = 1
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    if depth <= 200:
        assert decode(encode(value, what="result")) == value
    else:
        with pytest.raises(SerializationError):
            encode(value, what="result")


def test_numbers_too_long_to_read_are_refused():
    """Semantics §2.6: likewise integers that cannot be read back."""
    with pytest.raises(SerializationError, match="too long"):
        encode(10**5000, what="result")
    assert decode(encode("1" * 5000, what="result")) == "1" * 5000


def test_the_limit_is_in_bytes_of_text():
    """Semantics §2.6: ``PayloadTooLarge`` over 1 MiB, by name and size."""
    assert len(encode("x" * (MIB - 2), what="result")) == MIB
    with pytest.raises(PayloadTooLarge, match=r"event has 1,048,577 bytes as JSON; at most 1,048,576"):
        encode("x" * (MIB - 1), what="event")
    with pytest.raises(PayloadTooLarge):
        encode("é" * 4, what="event", limit=16)


def test_values_that_do_not_fit_their_annotation():
    """Protocols §17: ``SerializationError``, with pydantic's complaints."""
    with pytest.raises(SerializationError, match="does not fit int"):
        decode('"x"', int)
    with pytest.raises(SerializationError, match=r"order\.id"):
        decode('{"order": {"id": 1}}', Model)
    with pytest.raises(SerializationError, match="not JSON"):
        decode("{x")
    with pytest.raises(SerializationError, match="does not fit NoneType"):
        decode("1", type(None))


def test_annotations_pydantic_cannot_validate_into_mean_plain_json():
    """Semantics §2.6: then there is nothing to validate into."""

    class Strange: ...

    for annotation in (None, typing.Any, Strange, typing.Annotated[dict, []]):
        assert decode('{"a":1}', annotation) == {"a": 1}


def test_bodies_get_copies_of_what_can_change():
    """Protocols §17: list, dict, set, dataclass and model arguments are copied, all else is handed on."""
    shared = object()
    order = Order(UUID(int=0), Decimal(1), datetime(2026, 1, 1, tzinfo=UTC), tags={1})
    model = Model(order=order)
    args = ([1, [2]], {"a": {1}}, {3}, order, model, (order, [shared]), shared)
    copies = copied(args)
    assert copies == args
    assert copies[0][1] is not args[0][1]
    assert copies[1]["a"] is not args[1]["a"]
    assert copies[2] is not args[2]
    assert copies[3] is not order
    assert copies[3].tags is not order.tags
    assert copies[4].order is copies[3], "what was shared among the arguments still is"
    assert copies[5][1][0] is shared
    assert copies[6] is shared


def test_copies_of_frozen_slotted_and_circular_values():
    """Protocols §17: whatever the dataclass is like."""

    @dataclasses.dataclass(frozen=True, slots=True)
    class Frozen:
        items: list

    frozen = Frozen([1])
    circular = [frozen]
    circular.append(circular)
    (twin,) = copied((circular,))
    assert twin[1] is twin
    assert twin[0] == frozen
    assert twin[0].items is not frozen.items


def test_immutable_arguments_are_not_copied():
    """Protocols §17: there is nothing to copy."""
    args = (1, "a", None, b"x", 2.5, True)
    assert copied(args) is args
