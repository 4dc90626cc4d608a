"""Fresh ids: version 7, ordered by time, none twice."""

from uuid import RFC_4122

from orchestrator.ports import new_id, new_ids


def test_ids_are_of_version_7_and_ordered_by_time() -> None:
    """design §3: ids are made by whoever creates, and begin with the time in milliseconds."""
    early, late = new_ids(1_800_000_000.0, 1000), new_ids(1_800_000_000.001, 1000)
    made = [*early, *late, new_id(1_800_000_000.002)]
    assert {(one.version, one.variant) for one in made} == {(7, RFC_4122)}
    assert max(early) < min(late) < max(late) < made[-1]
    assert {one.int >> 80 for one in early} == {1_800_000_000_000}
    assert len(set(made)) == 2001
    assert new_ids(1.0, 0) == []


def test_ids_are_in_the_order_they_were_made_in() -> None:
    """Semantics §6, listing: to the microsecond, and within one call."""
    made = [new_id(1_800_000_000 + micros / 1_000_000) for micros in range(0, 3000, 7)]
    assert made == sorted(made)
    together = new_ids(1_800_000_000.123456, 1000)
    assert together == sorted(together)


def test_every_free_bit_is_left_to_chance() -> None:
    """62 of them, beside the variant; the 12 beside the version are the time within the millisecond."""
    made = [one.int & (1 << 80) - 1 for one in new_ids(1.0005, 200)]
    always = made[0]
    ever = made[0]
    for bits in made:
        always &= bits
        ever |= bits
    assert always == 0x7 << 76 | 0x800 << 64 | 0x2 << 62
    assert ever == always | (1 << 62) - 1
