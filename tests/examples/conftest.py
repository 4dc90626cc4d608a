"""What the tests of the examples share: an account of their own in the session's database, and its engine."""

from tests.integration.conftest import migrated, settings, site

__all__ = ["migrated", "settings", "site"]
