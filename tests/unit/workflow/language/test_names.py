import pytest

from orchestrator.errors import InvalidInstanceId, InvalidName
from orchestrator.workflow.language.names import (
    check_event_type,
    check_instance_id,
    check_step_name,
    check_workflow_name,
)


@pytest.mark.parametrize(
    ("check", "limit", "error"),
    [
        (check_workflow_name, 64, InvalidName),
        (check_event_type, 100, InvalidName),
        (check_instance_id, 100, InvalidInstanceId),
    ],
)
def test_plain_names(check, limit, error):
    for name in ("a", "A-b_9", "_x", "9", "x" * limit):
        assert check(name) == name
    for name in ("", "-a", "a b", "a.b", "é", "a\n", "x" * (limit + 1), None, 5, b"a", "٣"):
        with pytest.raises(error):
            check(name)


def test_step_names_are_free_text_without_control_characters():
    for name in ("charge the card", "é 😀", "a/b:c", "x" * 256, "-"):
        assert check_step_name(name) == name
    for name in ("", "a\nb", "a\x00", "\x7f", "\x85", "\u2028", "\ud800", "x" * 257, 1):
        with pytest.raises(InvalidName):
            check_step_name(name)


def test_ids_of_schedules_are_longer_and_freer_but_only_for_addressing():
    scheduled = "*/5 * * * *-1767225600000"
    assert check_instance_id(scheduled, scheduled=True) == scheduled
    assert check_instance_id("x" * 271, scheduled=True)
    with pytest.raises(InvalidInstanceId):
        check_instance_id(scheduled)
    for bad in ("x" * 272, "", "a\nb"):
        with pytest.raises(InvalidInstanceId):
            check_instance_id(bad, scheduled=True)


def test_a_long_name_is_not_repeated_in_full():
    with pytest.raises(InvalidName) as caught:
        check_step_name("x" * 10_000)
    assert len(str(caught.value)) < 300
