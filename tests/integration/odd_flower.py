"""An app beside a Flower whose insides are not those that the tab is made for: its routes cannot be added to."""

from flower import urls

from orchestrator.worker import app

urls.handlers = tuple(urls.handlers)  # Flower itself does not mind
import flower.app  # noqa: E402

flower.app.default_handlers = urls.handlers

__all__ = ["app"]
