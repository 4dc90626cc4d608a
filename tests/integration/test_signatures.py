"""Celery signatures as steps: real workers of an application's own app claim, run and report them."""

from collections.abc import Iterator

import pytest

from orchestrator.settings import Settings
from tests.integration.existing_worker import Shop, flows

pytestmark = pytest.mark.integration


@pytest.fixture
def shop(settings: Settings) -> Iterator[Shop]:
    one = Shop(settings)
    yield one
    one.close()


def test_a_tasks_result_is_the_steps(shop: Shop) -> None:
    """protocols §16: a signature runs on its own queue, in its own worker, and its result is the step's."""
    shop.worker()
    assert shop.result(flows.existing_buy, "o-1") == [{"order": "o-1", "amount": 2}, 3]
