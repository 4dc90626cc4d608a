import pytest

from orchestrator.errors import InvalidTransition
from orchestrator.workflow.status import FINISHED, HOLDS_SLOT, TRANSITIONS, Status, check


def test_the_words_users_see():
    words = "queued running waiting waiting_for_pause paused rolling_back complete errored terminated"
    assert [str(status) for status in Status] == words.split()


def test_the_table_is_complete():
    assert set(TRANSITIONS) == set(Status)
    for old, allowed in TRANSITIONS.items():
        assert old not in allowed - HOLDS_SLOT - {Status.QUEUED}
    assert FINISHED | HOLDS_SLOT | {Status.QUEUED, Status.WAITING, Status.PAUSED} == set(Status)


@pytest.mark.parametrize("old", list(Status))
def test_a_restart_is_possible_from_everywhere(old):
    for new in {Status.QUEUED, Status.RUNNING} - {old}:
        check(old, new)


@pytest.mark.parametrize("old", [status for status in Status if status not in FINISHED])
def test_whatever_is_unfinished_can_be_terminated_with_and_without_rollback(old):
    check(old, Status.TERMINATED)
    if old is not Status.ROLLING_BACK:
        check(old, Status.ROLLING_BACK)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("complete", "errored"),
        ("complete", "terminated"),
        ("terminated", "complete"),
        ("errored", "waiting"),
        ("rolling_back", "complete"),
        ("rolling_back", "paused"),
        ("paused", "complete"),
        ("paused", "waiting"),
        ("waiting_for_pause", "waiting"),
    ],
)
def test_what_is_not_in_the_table_is_refused(old, new):
    with pytest.raises(InvalidTransition, match=f"{old} cannot become {new}"):
        check(Status(old), Status(new))


def test_a_finished_instance_can_be_rolled_back_later():
    for old in FINISHED:
        check(old, Status.ROLLING_BACK)
