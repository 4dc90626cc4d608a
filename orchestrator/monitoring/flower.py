"""Flower's insides: the only module that knows them.

Owns: how the tab gets into a Flower that has no plugin API (its command, its table of routes, its templates), and the
base classes of our handlers with what they take over from Flower: basic auth, OAuth, ``--read_only``, ``--url_prefix``.
Does not own: which routes there are (``routes``), or what they answer.

Every handler of ours derives from ``PageHandler`` or ``JsonHandler``. Both refuse before anything else is done: whoever
is not logged in where Flower asks for a login, every writing method where Flower is read-only, and every writing method
that another site's page may have caused.
"""

from __future__ import annotations

import ast
import atexit
import functools
import json
import logging
import os
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, ParamSpec, TypeVar
from uuid import UUID

import click
import flower
import tornado.template
from celery import Celery
from flower import command, urls
from flower.views import BaseHandler
from tornado.routing import URLSpec
from tornado.web import HTTPError, RequestHandler, authenticated, stream_request_body

from orchestrator.client.orchestrator import Orchestrator
from orchestrator.errors import InvalidConfig
from orchestrator.monitoring import assets, words
from orchestrator.monitoring.refusals import document_of, headers_of, status_of
from orchestrator.monitoring.tab import Tab
from orchestrator.settings import PREFIX, Settings

logger = logging.getLogger(__name__)

TEMPLATES = Path(__file__).with_name("templates")
TASKS = 20
"""Tasks of one step that are linked to."""
_TAB = "orchestrator_tab"
_ARGS_LENGTH = 1000
"""Characters that the arguments of a step's task have at most, as Flower knows them."""
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_ESCAPED_BYTES = 4
"""How many bytes of a request one byte of a value may take: ``\\u00e9`` is six bytes instead of two."""
_FORM_BYTES = 64 * 1024
_POLICY = (
    "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; script-src 'self'; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'self'"
)

_NO_TOKEN = (
    "The request has no valid token: reload the page (the cookie _xsrf and the header X-XSRFToken must be the same). "
    "Programs send their password (--basic_auth), or need a Flower with FLOWER_UNAUTHENTICATED_API."
)

P = ParamSpec("P")
T = TypeVar("T")
Routes = Callable[[], Sequence[URLSpec]]


# -- getting in ----------------------------------------------------------------------------------------------


def extended(routes: Routes) -> click.Command:
    """Flower's command, which now puts ``routes`` and our templates in place before it starts."""
    found: click.Command = command.flower
    start = found.callback
    if start is None or hasattr(start, _TAB):
        return found

    @functools.wraps(start)
    def with_tab(*args: Any, **kwargs: Any) -> Any:
        attach(click.get_current_context().obj.app, routes)
        return start(*args, **kwargs)

    setattr(with_tab, _TAB, True)
    found.callback = with_tab
    return found


def attach(app: Celery, routes: Routes) -> Tab | None:
    """Give the Flower that is about to start for ``app`` its Workflows tab. Without workflows there is none; nor where
    Flower's insides are not what this was made for: that is logged, and Flower starts as it would without us."""
    from orchestrator.dispatch.celery_app import (
        settings_of,
    )  # late: other commands of Celery need none of this
    from orchestrator.dispatch.existing.adoption import is_adopted
    from orchestrator.monitoring.metrics.collector import expose

    try:
        app.loader.import_default_modules()  # as Flower does later: workflows may be set up there
        settings = settings_of(app) or _from_environment()
        if settings is None:
            logger.debug("Flower has no Workflows tab: the app %r serves no workflows.", app.main)
            return None
        tab = Tab(Orchestrator(settings, celery=app if is_adopted(app) else None))
        install(routes(), tab)
    except Exception:
        logger.warning(
            "Flower %s starts without its Workflows tab, which does not fit in (it is made for Flower 2.0.1 to 2.x).",
            getattr(flower, "__version__", "of an unknown version"),
            exc_info=True,
        )
        return None
    atexit.register(tab.close)
    atexit.register(expose(tab.orchestrator).stop)
    return tab


def install(routes: Sequence[URLSpec], tab: Tab) -> None:
    """Put ``routes`` before Flower's last one, which answers everything with 404, and our templates before its own."""
    loader = Templates(TEMPLATES, Path(urls.settings["template_path"]))
    loader.load("navbar.html")
    urls.handlers[-1:-1] = routes
    urls.settings.update({"template_loader": loader, _TAB: tab})


def _from_environment() -> Settings | None:
    """For an app that knows nothing of us, beside workers that do."""
    if not os.environ.get(PREFIX + "DATABASE_URL"):
        return None
    try:
        return Settings.from_env()
    except InvalidConfig as error:
        logger.warning("Flower has no Workflows tab: %s", error)
        return None


class Templates(tornado.template.BaseLoader):
    """Our templates, then Flower's. To two of Flower's something is added, wherever its release has them."""

    ADDED: ClassVar = {
        "navbar.html": ("</ul>", "workflows/entry.html", False),
        "task.html": ("{% block container %}", "workflows/of_task.html", True),
    }
    """Template: before (or, if true, after) which text what is included. The first such text counts."""

    def __init__(self, own: Path, flowers: Path) -> None:
        super().__init__()
        self._folders = (own, flowers)

    def resolve_path(self, name: str, parent_path: str | None = None) -> str:
        return name  # none is relative

    def _create_template(self, name: str) -> tornado.template.Template:
        path = next(
            (p for folder in self._folders if (p := folder / name).is_file()), self._folders[1] / name
        )
        return tornado.template.Template(
            self._with_ours(name, path.read_text("utf-8")), name=name, loader=self
        )

    def _with_ours(self, name: str, text: str) -> str:
        if name not in self.ADDED:
            return text
        mark, template, is_after = self.ADDED[name]
        head, found, tail = text.partition(mark)
        if not found:
            logger.warning(
                "Flower's %s has no %s in this release: %s is not shown there.", name, mark, template
            )
            return text
        ours = f'{{% include "{template}" %}}'
        return head + (found + ours if is_after else ours + found) + tail


def step_of(task: Any) -> tuple[str, str] | None:
    """The instance (its uuid) and the key of the step that one of our tasks runs; ``None`` for other tasks."""
    text = str(getattr(task, "args", ""))
    if len(text) > _ARGS_LENGTH:
        return None
    try:
        instance, key, fence = ast.literal_eval(text)
        return (str(UUID(instance)), key) if isinstance(key, str) and isinstance(fence, int) else None
    except (ValueError, TypeError, SyntaxError, AttributeError, MemoryError, RecursionError):
        return None


# -- what every handler of ours is ---------------------------------------------------------------------------


class Guarded(BaseHandler):
    """Refuses whoever Flower would refuse."""

    @property
    def tab(self) -> Tab:
        found: Tab = self.settings[_TAB]
        return found

    @property
    def orchestrator(self) -> Orchestrator:
        return self.tab.orchestrator

    @property
    def read_only(self) -> bool:
        """Whether this Flower was started with ``--read_only``: nothing may be changed through it."""
        return bool(getattr(self.application.options, "read_only", False))  # Flower 2.0 cannot be

    @property
    def has_login(self) -> bool:
        """Whether Flower asks for a login at all."""
        options = self.application.options
        return bool(options.basic_auth or options.auth)

    def link(self, path: str) -> str:
        """``path`` of this Flower, from its root, under ``--url_prefix``."""
        prefix = (self.application.options.url_prefix or "").strip("/")
        return f"/{prefix}{path}" if prefix else path

    async def offload(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what may block in a thread of the tab."""
        return await self.tab.offload(function, *args, **kwargs)

    def prepare(self) -> None:
        """Refuse. Who overrides this calls it first, and looks at ``self._finished``."""
        self._authenticate()
        if self._finished:
            return
        if "%00" in (self.request.uri or ""):  # Postgres would refuse it as no text at all
            raise InvalidConfig("The address holds a NUL: no name, id or parameter has one.")
        if self.request.method in _READING:
            return
        if self.read_only:  # first: a token would not help
            raise HTTPError(403, "This Flower is read-only (--read_only).")
        self.check_xsrf_cookie()  # also where the release of Flower does not ask for it

    def _authenticate(self) -> None:
        """As Flower's own pages: 401 with basic auth, the login page with OAuth."""
        authenticated(lambda handler: None)(self)

    def check_xsrf_cookie(self) -> None:
        """Let a writing request through that carries the token of our pages, or credentials that a browser does not add
        by itself; without any login also what ``FLOWER_UNAUTHENTICATED_API`` lets through in Flower's API."""
        headers = self.request.headers
        if headers.get("Sec-Fetch-Site", "same-origin") != "same-origin":
            raise HTTPError(403, "Another site's page caused this request.")
        try:
            RequestHandler.check_xsrf_cookie(self)
        except HTTPError as error:
            is_open = "Authorization" in headers if self.has_login else self._is_api_open()
            if not is_open or "Origin" in headers:
                raise HTTPError(403, _NO_TOKEN) from error

    @staticmethod
    def _is_api_open() -> bool:
        return os.environ.get("FLOWER_UNAUTHENTICATED_API", "").lower() in ("1", "true", "yes", "y", "on")

    def set_default_headers(self) -> None:
        super().set_default_headers()
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "same-origin")
        self.set_header("X-Frame-Options", "SAMEORIGIN")
        self.set_header("Content-Security-Policy", _POLICY)
        self.set_header("Cache-Control", "no-store")

    def query(self, name: str, default: str = "") -> str:
        """An argument of the URL, as it came. (Flower's ``get_argument`` escapes it for HTML.)"""
        return str(RequestHandler.get_query_argument(self, name, default))

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """What we refuse is no failure of ours."""
        if status_of(value) >= 500:
            super().log_exception(typ, value, tb)

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        """With the status that an error of ours stands for."""
        error = (kwargs.get("exc_info") or (None, None))[1]
        super().send_error(status_code if error is None else status_of(error), **kwargs)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = (kwargs.get("exc_info") or (None, None))[1]
        for name, value in headers_of(error).items():
            self.set_header(name, value)
        if status_code == 401:
            super().write_error(status_code, **kwargs)  # asks the browser for the password
            return
        self.explain(status_code, document_of(error, status_code)["error"])

    def explain(self, status: int, error: dict[str, str]) -> None:
        """Write what went wrong: ``code`` and ``message``."""
        raise NotImplementedError


class PageHandler(Guarded):
    """A page in Flower's looks. Its templates get ``handler``, ``link``, ``read_only``."""

    def page(self, template: str, **names: Any) -> None:
        """Render ``templates/workflows/<template>``."""
        _ = self.xsrf_token  # sets the cookie that our scripts send back
        ours = {"link": self.link, "asset": self.asset, "words": words, "read_only": self.read_only}
        self.render(f"workflows/{template}", **ours, **names)

    def asset(self, name: str) -> str:
        """The address of a style sheet or script, which changes with its content."""
        return self.link(f"/workflows-assets/{name}?v={assets.version(name)}")

    def tasks_of(self, instance: str, key: str) -> list[tuple[str, str]]:
        """The Celery tasks of a step that Flower remembers, the newest first: their uuids and states."""
        begin = f"('{instance}', {key!r}, "
        tasks = list(self.application.events.state.tasks.items())
        found = ((uuid, task.state) for uuid, task in reversed(tasks) if str(task.args).startswith(begin))
        return list(islice(found, TASKS))

    def explain(self, status: int, error: dict[str, str]) -> None:
        self.page("problem.html", problem=error, status=status)


@stream_request_body
class JsonHandler(Guarded):
    """Answers in JSON, errors too: ``{"error": {"code", "message"}}``."""

    def prepare(self) -> None:
        super().prepare()
        self._body = bytearray()
        self._most = _FORM_BYTES + _ESCAPED_BYTES * self.orchestrator.settings.max_payload_bytes
        told = self.request.headers.get("Content-Length", "")
        if told.isdecimal() and int(told) > self._most:
            raise self._too_large()

    def data_received(self, chunk: bytes) -> None:
        if len(self._body) <= self._most:  # one that grows beyond it is not kept
            self._body += chunk

    def _too_large(self) -> HTTPError:
        return HTTPError(413, "The body has more than %d bytes.", self._most)

    def json_body(self) -> Any:
        """The body, parsed; ``None`` if there is none. Raises 400, 413 and 415."""
        if len(self._body) > self._most:
            raise self._too_large()
        if not self._body:
            return None
        kind = self.request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise HTTPError(415, "The body must be JSON (Content-Type: application/json).")
        try:
            return json.loads(self._body)
        except (ValueError, RecursionError) as error:
            raise HTTPError(400, "The body is not JSON: %s", error) from None

    def answer(self, document: Any, status: int = 200) -> None:
        """Write ``document`` as JSON, and end."""
        self.set_status(status)
        self.set_header("Content-Type", "application/json; charset=UTF-8")
        self.finish(json.dumps(document, ensure_ascii=False, allow_nan=False))

    def _authenticate(self) -> None:
        if not self.current_user:
            raise HTTPError(401, "Log in first.")

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        if status_code == 401 and self.application.options.basic_auth:
            self.set_header("WWW-Authenticate", 'Basic realm="flower"')
        error = (kwargs.get("exc_info") or (None, None))[1]
        for name, value in headers_of(error).items():
            self.set_header(name, value)
        self.answer(document_of(error, status_code), status_code)

    def explain(self, status: int, error: dict[str, str]) -> None:
        self.answer({"error": error}, status)
