"""What a deployment may not set is refused before anything is done, and passwords are shown to nobody."""

from typing import Any

import pytest

from orchestrator.errors import InvalidConfig
from orchestrator.settings import Settings
from orchestrator.store.session import connect

WHERE = {"database_url": "postgresql://u:s3cret@h/db", "redis_url": "redis://:s3cret@h:6379/0"}


@pytest.mark.parametrize(
    "url", ["nonsense", "amqp://h:5672//", "redis://:s3cret@h:port/0", "redis://:s3[cret@h/0"]
)
def test_a_redis_url_that_redis_cannot_read_is_refused_at_once(url: str) -> None:
    """api §4: not by the first message about a verb, which is committed then."""
    with pytest.raises(InvalidConfig, match="ORCHESTRATOR_REDIS_URL must be a redis://") as refused:
        Settings(**{**WHERE, "redis_url": url})
    assert "s3" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["redis://h", "rediss://u:p%40ss@h:6380/1?ssl_cert_reqs=none", "unix:///run/redis.sock?db=1"]
)
def test_every_kind_of_redis_url_is_taken(url: str) -> None:
    """api §4: what redis-py reads is a Redis URL."""
    assert Settings(**{**WHERE, "redis_url": url}).broker_url == url


@pytest.mark.parametrize(
    "url",
    ["postgresql://u:s3cret@h:port/db", "postgresql://u:s3cret@h:5432x/db", "postgresql://u:p@s3cret@h/db"],
)
def test_a_database_url_that_cannot_be_read_is_an_error_that_says_so(url: str) -> None:
    """api §5: by its code, and without the password."""
    with pytest.raises(InvalidConfig, match="ORCHESTRATOR_DATABASE_URL cannot be read") as refused:
        connect(Settings(**{**WHERE, "database_url": url}).database_url, client=True)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value"), [("delivery", "brokr"), ("lease", float("nan")), ("concurrency", 0)]
)
def test_a_value_that_means_nothing_is_refused(name: str, value: Any) -> None:
    """api §4: a setting that is misspelt must not be taken for another."""
    with pytest.raises(InvalidConfig, match=name.upper()):
        Settings(**WHERE, **{name: value})


def test_settings_in_a_log_show_no_password() -> None:
    """api §4: URLs hold passwords; the rest is shown."""
    shown = repr(Settings(**WHERE, account="shop"))
    assert "s3cret" not in shown
    assert "account='shop'" in shown
