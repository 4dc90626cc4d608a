"""The JSON API in a real Flower: every operation, its errors, its stream, and who may use it."""

from __future__ import annotations

import base64
import http.client
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode
from uuid import uuid4

import psycopg
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from orchestrator.dev import up
from orchestrator.dev.process import free_port
from orchestrator.dev.programs import Program
from orchestrator.dev.servers import Servers
from orchestrator.store import migrate
from tests.integration.harness import eventually

pytestmark = pytest.mark.integration

if not up.flower_installed() and not os.environ.get("CI"):
    pytest.skip("needs Flower (extra `dev`)", allow_module_level=True)

ROOT = "/api/workflows"
SECRET = "hunter2-of-the-api"
LOGIN = "ann:open sesame"


class Site:
    """A Flower, and what its OpenAPI document says: every answer is held against it."""

    def __init__(self, host: str, prefix: str = "", headers: dict[str, str] | None = None) -> None:
        self.host = host
        self.prefix = prefix
        self.headers = headers or {}
        self._document: dict[str, Any] | None = None

    @property
    def document(self) -> dict[str, Any]:
        if self._document is None:
            self._document = self.raw("GET", f"{ROOT}/openapi.json")[2]
        return self._document

    def raw(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, http.client.HTTPMessage, Any]:
        """Status, headers, and the body: parsed if it is JSON."""
        connection = http.client.HTTPConnection(self.host, timeout=30)
        try:
            sent = {**self.headers, **(headers or {})}
            if body is not None and not isinstance(body, bytes):
                body = json.dumps(body).encode()
                sent.setdefault("Content-Type", "application/json")
            connection.request(method, self.prefix + path, body, sent)
            answer = connection.getresponse()
            content: Any = answer.read()
            if answer.headers.get("Content-Type", "").startswith("application/json"):
                content = json.loads(content)
            return answer.status, answer.headers, content
        finally:
            connection.close()

    def call(self, method: str, operation: str, body: Any = None, **query: Any) -> Any:
        """Call an operation of the document and hold the answer against it. ``operation``: the path, with what stands
        for a name after a colon: ``/{name:api_order}/instances``."""
        template, path = _filled(operation)
        status, headers, content = self.raw(
            method, path + ("?" + urlencode(query, True) if query else ""), body
        )
        described = self.document["paths"][template][method.lower()]["responses"]
        assert str(status) in described, (
            f"{method} {template} answers {status}, which is not described: {content}"
        )
        media = described[str(status)].get("content", {})
        if not media:
            assert content == b"", content
            return status
        kind = headers["Content-Type"].partition(";")[0]
        assert kind in media, f"{method} {template} answers {status} with {kind}"
        if kind == "application/json":
            self.check(media[kind]["schema"], content)
        return content if status < 300 else (status, content["error"]["code"])

    def check(self, schema: dict[str, Any], content: Any) -> None:
        resource = Resource(self.document, DRAFT202012)
        registry = Registry().with_resource("urn:api", resource)
        Draft202012Validator({"$ref": "urn:api" + schema["$ref"]}, registry=registry).validate(content)

    def create(self, name: str, params: Any = None, **fields: Any) -> str:
        return str(self.call("POST", f"{ROOT}/{{name:{name}}}/instances", {"params": params, **fields})["id"])

    def status(self, name: str, id: str) -> str:
        return str(self.call("GET", f"{ROOT}/{{name:{name}}}/instances/{{id:{id}}}")["status"])

    def verb(self, verb: str, name: str, id: str, body: Any = None) -> Any:
        return self.call(
            "POST", f"{ROOT}/{{name:{name}}}/instances/{{id:{id}}}/{verb}", {} if body is None else body
        )


class Stream:
    """A client of server-sent events."""

    def __init__(self, site: Site, name: str, id: str, **headers: str) -> None:
        query = headers.pop("query", "")
        self.connection = http.client.HTTPConnection(site.host, timeout=30)
        path = f"{site.prefix}{ROOT}/{name}/instances/{id}/events{query}"
        sent = {**site.headers, "Accept": "text/event-stream", **headers}
        self.connection.request("GET", path, headers=sent)
        self.answer = self.connection.getresponse()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.answer.close()
        self.connection.close()

    def messages(self) -> Iterator[dict[str, str]]:
        """Each message as its fields; a comment as ``{"": text}``."""
        fields: dict[str, str] = {}
        while line := self.answer.readline().decode():
            name, _, value = line.rstrip("\n").partition(": ")
            if line == "\n":
                yield fields
                fields = {}
            elif line.startswith(":"):
                fields[""] = line[1:].strip()
            else:
                fields[name] = value

    def events(self) -> Iterator[dict[str, Any]]:
        """The events, up to the end of the stream."""
        for message in self.messages():
            if message.get("event") == "end":
                return
            assert message.get("event") != "problem", message
            if "data" in message:
                found = json.loads(message["data"])
                assert message["id"] == str(found["event_id"])
                yield found


def _filled(operation: str) -> tuple[str, str]:
    template, path = "", ""
    for part in operation.split("/")[1:]:
        if part.startswith("{"):
            name, _, value = part[1:-1].partition(":")
            template += f"/{{{name}}}"
            path += "/" + quote(value.replace("\x1f", "/"), safe="")
        else:
            template, path = f"{template}/{part}", f"{path}/{part}"
    return template, path


@pytest.fixture(scope="module")
def environ(servers: Servers) -> dict[str, str]:
    """A database and a broker of its own, on the session's servers."""
    name = f"api_{uuid4().hex[:8]}"
    with psycopg.connect(servers.database_url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    database_url = servers.database_url.rpartition("/")[0] + "/" + name
    migrate.upgrade(database_url)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ORCHESTRATOR_", "FLOWER_", "CELERY_"))}
    environ = up.environment(kept, database_url, servers.redis_url.replace("/0", "/9"))
    return {**environ, "ORCHESTRATOR_WORKFLOWS": "tests.integration.monitored"}


@pytest.fixture(scope="module")
def flowers(
    environ: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Site, Site, Site]]:
    """Beside one worker: a Flower that is open, one that knows no workflow's code and asks for a password, and one
    under a prefix that is read-only."""
    logs: Path = tmp_path_factory.mktemp("logs")
    programs: list[Program] = []
    login = {"Authorization": "Basic " + base64.b64encode(LOGIN.encode()).decode()}
    try:
        worker = Program(
            "worker", logs, [*up.celery_command(), "worker", "-l", "INFO", "--without-gossip"], 15.0
        )
        programs.append(worker)
        worker.start(environ)
        sites = []
        for name, options, more, prefix, headers in (
            ("open", [], {"FLOWER_UNAUTHENTICATED_API": "true"}, "", {}),
            ("guarded", [f"--basic_auth={LOGIN}"], {"ORCHESTRATOR_WORKFLOWS": ""}, "", login),
            (
                "reading",
                ["--read_only", "--url_prefix=mon"],
                {"FLOWER_UNAUTHENTICATED_API": "true"},
                "/mon",
                {},
            ),
        ):
            port = free_port()
            command = [*up.celery_command(), "flower", "--address=127.0.0.1", f"--port={port}", *options]
            program = Program(name, logs, command, 10.0)
            programs.append(program)
            program.start({**environ, **more})
            sites.append(Site(f"127.0.0.1:{port}", prefix, headers))
        worker.await_ready(lambda: " ready." in worker.log.read_text())
        for program, site in zip(programs[1:], sites, strict=True):
            program.await_ready(lambda site=site: up.answers(f"http://{site.host}{site.prefix}/healthcheck"))
        open_, guarded, reading = sites
        eventually(lambda: len(open_.raw("GET", ROOT)[2]["workflows"]) >= 4, patience_s=30)
        yield open_, guarded, reading
    finally:
        for program in reversed(programs):
            program.stop()


@pytest.fixture
def site(flowers: tuple[Site, Site, Site]) -> Site:
    return flowers[0]


def new() -> str:
    return f"i-{uuid4().hex[:12]}"


def await_status(site: Site, name: str, id: str, *wanted: str) -> str:
    return eventually(lambda: (s := site.status(name, id)) in wanted and s, f"one of {wanted}", patience_s=40)


def test_the_document_is_valid_openapi_and_has_every_route(site: Site) -> None:
    from orchestrator.monitoring.api.routes import ROUTES, pattern

    OpenAPIV31SpecValidator(site.document).validate()
    described = {pattern(path) + "$" for path in site.document["paths"]}
    assert described == {route.regex.pattern for route in ROUTES}
    names = [each["operationId"] for path in site.document["paths"].values() for each in path.values()]
    assert len(names) == len(set(names))


def test_none_of_flowers_own_routes_is_shadowed(site: Site) -> None:
    """Flower's API stays as it is."""
    from flower.urls import handlers

    from orchestrator.monitoring.api.routes import ROUTES

    for handler in handlers[:-1]:
        own = handler.regex.pattern if hasattr(handler, "regex") else handler[0]
        path = own.rstrip("$").replace("(.+)", "x").replace("(.*)", "x").replace("/?", "")
        assert not [route for route in ROUTES if route.regex.fullmatch(path)], path
    assert site.raw("GET", "/api/workers")[0] == 200
    assert site.raw("GET", "/api/tasks")[0] == 200


def test_workflows_are_listed_and_described(site: Site) -> None:
    """ADR 15: as workers registered them."""
    names = [each["name"] for each in site.call("GET", ROOT)["workflows"]]
    assert names == sorted(names) and {"api_order", "api_steps"} <= set(names)
    one = site.call("GET", f"{ROOT}/{{name:api_order}}")
    assert one["limits"]["concurrency"]["limit"] == 50 and one["worker_count"] == 1
    assert set(one["params_schema"]["properties"]) == {"number", "fails"}
    graph = eventually(
        lambda: one if site.raw("GET", f"{ROOT}/api_order/diagram")[0] == 200 else None
    ) and site.call("GET", f"{ROOT}/{{name:api_order}}/diagram")
    assert graph["workflow"]["class_name"] == "order"
    assert b"<svg" in site.call("GET", f"{ROOT}/{{name:api_order}}/diagram.svg")
    assert site.call("GET", f"{ROOT}/{{name:nobody}}") == (404, "unknown_workflow")


def test_an_instance_from_its_creation_to_its_end(site: Site) -> None:
    """API §3 over HTTP: create, look, send an event, see it complete, delete."""
    made, name = new(), "api_order"
    assert site.create(name, {"number": 1}, id=made) == made
    await_status(site, name, made, "waiting")
    path = f"{ROOT}/{{name:{name}}}/instances/{{id:{made}}}"
    assert site.call("GET", path)["params"] == {"number": 1}
    assert site.verb("send-event", name, made, {"type": "approval", "payload": {"by": "ann"}}) == 204
    await_status(site, name, made, "complete")
    document = site.call("GET", path)
    assert (document["output"], document["is_finished"]) == ("approved by ann", True)
    keys = ["do:reserve:1", "do:token:1", "wait:approval:1"]
    assert [each["key"] for each in site.call("GET", f"{path}/timeline")["steps"]] == keys
    assert [each["key"] for each in site.call("GET", f"{path}/steps", key=keys[:2])["steps"]] == keys[:2]
    assert site.call("GET", f"{path}/steps/{{key:do:reserve:1}}")["output"] == {"shelf": 7}
    assert site.call("GET", f"{path}/steps/{{key:do:nothing:1}}") == (404, "instance_not_found")
    trace = site.call("GET", f"{path}/trace")
    assert {found["state"] for found in trace["trace"]["nodes"].values()} == {"done"}
    assert b'data-state="done"' in site.call("GET", f"{path}/diagram.svg")
    assert site.call("GET", f"{path}/audit")["audit"] == []
    listed = site.call(
        "GET", f"{ROOT}/{{name:{name}}}/instances", id_prefix=made[:8], status=["complete", "queued"]
    )
    assert [each["id"] for each in listed["instances"]] == [made]
    assert site.call("DELETE", path) == 204
    assert site.call("GET", path) == (404, "instance_not_found")


def test_sensitive_values_are_in_no_answer(site: Site) -> None:
    """semantics §2.8: the API shows ``[REDACTED]``."""
    made = site.create("api_order", {"number": 1})
    await_status(site, "api_order", made, "waiting")
    path = f"{ROOT}/api_order/instances/{made}"
    for each in ("", "/timeline", "/steps/do%3Atoken%3A1", "/steps?key=do:token:1", "/trace", "/events"):
        status, _, content = site.raw("GET", path + each, headers={"Accept": "application/json"})
        assert status == 200 and SECRET not in json.dumps(content), each
    assert site.call("GET", f"{ROOT}/{{name:api_order}}/instances/{{id:{made}}}/steps/{{key:do:token:1}}")[
        "output"
    ] == ("[REDACTED]")


def test_pause_resume_terminate_restart(site: Site) -> None:
    """semantics §4."""
    name, made = "api_order", site.create("api_order", {"number": 1})
    await_status(site, name, made, "waiting")
    assert site.verb("pause", name, made) == 204
    assert site.status(name, made) == "paused"
    assert site.call("GET", f"{ROOT}/{{name:{name}}}/instances/{{id:{made}}}")["actions"]["resume"] is None
    assert site.verb("resume", name, made) == 204
    await_status(site, name, made, "waiting")
    assert site.verb("restart", name, made, {"from_step": "token"}) == 204
    assert site.verb("restart", name, made, {"from_step": "nothing"}) == (409, "invalid_transition")
    await_status(site, name, made, "waiting")
    assert site.verb("terminate", name, made, {"rollback": True}) == 204
    await_status(site, name, made, "terminated")
    assert site.verb("terminate", name, made) == (409, "invalid_transition")
    assert site.verb("send-event", name, made, {"type": "approval"}) == (409, "invalid_transition")
    verbs = [
        each["verb"]
        for each in site.call("GET", f"{ROOT}/{{name:{name}}}/instances/{{id:{made}}}/audit")["audit"]
    ]
    assert verbs == ["pause", "resume", "restart", "terminate"]


def test_a_failed_rollback_is_retried_and_skipped(site: Site) -> None:
    """semantics §5.8."""
    name, made = "api_stuck", site.create("api_stuck")
    await_status(site, name, made, "errored")
    document = site.call("GET", f"{ROOT}/{{name:{name}}}/instances/{{id:{made}}}")
    assert document["rollback"]["outcome"] == "failed" and document["actions"]["retry-rollback"] is None
    assert site.verb("retry-rollback", name, made) == 204
    await_status(site, name, made, "errored")
    assert site.verb("skip-rollback", name, made, {"step": "nothing"})[0] == 409
    assert site.verb("skip-rollback", name, made, {"step": "take"}) == 204
    await_status(site, name, made, "errored")
    document = site.call("GET", f"{ROOT}/{{name:{name}}}/instances/{{id:{made}}}")
    assert document["rollback"]["outcome"] == "complete"


def test_refusals_say_why(site: Site) -> None:
    """API §5: each error has a stable code."""
    made = site.create("api_order", {"number": 1})
    instances = f"{ROOT}/{{name:api_order}}/instances"
    assert site.call("POST", instances, {"params": {"number": 1}, "id": made}) == (409, "instance_exists")
    assert site.call("POST", instances, {"params": {"number": "x"}}) == (422, "invalid_params")
    assert site.call("POST", instances, {"params": {"number": 1}, "id": "no/slash"}) == (
        422,
        "invalid_instance_id",
    )
    assert site.call("POST", instances, {"number": 1}) == (422, "invalid_config")
    assert site.call("POST", instances, {"params": {"number": 1}, "version": "9"}) == (
        404,
        "unknown_workflow",
    )
    assert site.call("POST", f"{ROOT}/{{name:nobody}}/instances", {}) == (404, "unknown_workflow")
    assert site.call("GET", instances, status="nothing") == (422, "invalid_config")
    assert site.call("GET", instances, limit="many") == (422, "invalid_config")
    assert site.call("GET", instances, limit=0) == (422, "invalid_config")
    assert site.call("GET", instances, cursor="x") == (422, "invalid_config")
    assert site.verb("send-event", "api_order", made, {"payload": 1}) == (422, "invalid_config")
    assert site.verb("send-event", "api_order", made, {"type": "not allowed"}) == (422, "invalid_name")
    assert site.verb("pause", "api_order", "nobody") == (404, "instance_not_found")
    path = f"{ROOT}/api_order/instances"
    assert site.raw("POST", path, b"{", {"Content-Type": "application/json"})[0] == 400
    assert site.raw("POST", path, b"{}", {"Content-Type": "text/plain"})[0] == 415
    assert site.raw("PUT", path, {})[0] == 405
    assert site.raw("GET", f"{ROOT}/api_order/nothing")[0] == 404


def test_what_the_address_cannot_mean_is_refused(site: Site) -> None:
    """semantics §6: bad input gets a clear error: neither a NUL nor a number that Postgres has not is a failure."""
    made = site.create("api_order", {"number": 1})
    instance = f"{ROOT}/api_order/instances/{made}"
    bad = ("/%00", "/%00/diagram.svg", "/api_order/diagram?version=%00", "/api_order/instances?id_prefix=%00")
    for path in (*(ROOT + each for each in bad), f"{instance}/steps/%00", f"{instance}/steps?key=%00"):
        status, _, content = site.raw("GET", path)
        assert (status, content["error"]["code"]) == (422, "invalid_config"), path
        assert "NUL" in content["error"]["message"]
    assert site.raw("POST", f"{ROOT}/%00/instances", {"params": None})[0] == 422
    for page in ("/workflows/%00", f"/workflows/api_order/{made}/steps/%00"):
        assert site.raw("GET", page)[0] == 422, page
    operation = f"{ROOT}/{{name:api_order}}/instances/{{id:{made}}}/timeline"
    assert site.call("GET", operation, after=2**63) == (422, "invalid_config")
    assert site.call("GET", operation, after=2**63 - 1)["steps"] == []


def test_a_restart_that_names_no_step_but_says_which_restarts_nothing(site: Site) -> None:
    """semantics §4: ``restart`` without a step forgets all; whoever forgot to name one must not lose it."""
    made = site.create("api_order", {"number": 1})
    await_status(site, "api_order", made, "waiting")
    for more in ({"count": 2}, {"kind": "wait"}, {"from_step": None, "count": 1}):
        assert site.verb("restart", "api_order", made, more) == (422, "invalid_config")
    instance = f"{ROOT}/{{name:api_order}}/instances/{{id:{made}}}"
    assert site.call("GET", instance + "/audit")["audit"] == []
    assert site.verb("restart", "api_order", made) == 204


def test_refusals_of_http_itself_are_whole_sentences(site: Site) -> None:
    """Numbers and reasons stand in the text; who uses the wrong method hears which there are."""
    path, kind = f"{ROOT}/api_order/instances", {"Content-Type": "application/json"}
    for body in (b'{"params": ', b"\xff", b"[" * 100_000):
        told = site.raw("POST", path, body, kind)[2]["error"]["message"]
        assert told.startswith("The body is not JSON: ") and "%" not in told
    status, headers, content = site.raw("PUT", path, {})
    assert (status, content["error"]["message"]) == (405, "Method Not Allowed")
    assert set(headers["Allow"].split(", ")) == {"GET", "HEAD", "POST", "OPTIONS"}


def test_a_body_that_is_too_long_is_refused_before_it_is_read(site: Site) -> None:
    """semantics §6: params have at most 1 MiB; what is far longer is not even parsed."""
    instances = f"{ROOT}/{{name:api_order}}/instances"
    long = {"params": {"number": 1, "note": "x" * (1024 * 1024 + 1)}}
    assert site.call("POST", instances, long) in [(413, "payload_too_large"), (422, "invalid_params")]
    connection = http.client.HTTPConnection(site.host, timeout=30)
    connection.putrequest("POST", f"{ROOT}/api_order/instances")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(50 * 1024 * 1024))
    connection.endheaders()
    answer = connection.getresponse()
    told = json.loads(answer.read())["error"]
    assert answer.status == 413 and told["code"] == "payload_too_large"
    assert any(each.isdigit() for each in told["message"]), told  # how much is allowed
    connection.close()


def test_ids_of_schedules_are_addressed_with_their_slashes(site: Site, environ: dict[str, str]) -> None:
    """semantics §3.4: cron instance ids are addressable."""
    made = site.create("api_order", {"number": 1})
    given = "*/5 * * * *@Europe/Berlin-1700000000000"
    url = environ["ORCHESTRATOR_DATABASE_URL"].replace("+psycopg", "")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("UPDATE orchestrator_instances SET name_id = %s WHERE name_id = %s", (given, made))
    path = f"{ROOT}/{{name:api_order}}/instances/{{id:{given.replace('/', chr(31))}}}"
    assert site.call("GET", path)["id"] == given
    assert site.call("DELETE", path) == 204


def test_the_stream_tells_what_happened_and_what_happens(site: Site) -> None:
    """semantics §7: from the beginning, then live, to the terminal event; then it ends."""
    name, made = "api_order", site.create("api_order", {"number": 1})
    with Stream(site, name, made) as stream:
        assert stream.answer.headers["Content-Type"].startswith("text/event-stream")
        told = []
        for each in stream.events():
            site.check({"$ref": "#/components/schemas/Event"}, each)
            told.append(each)
            if each["type"] == "wait_started":
                site.verb("send-event", name, made, {"type": "approval", "payload": {"by": "ann"}})
        assert stream.answer.read() == b"", "nothing comes after the end"
    assert told[0]["type"] == "workflow_queued" and told[-1]["type"] == "workflow_completed"
    ids = [each["event_id"] for each in told]
    assert ids == sorted(set(ids)) and SECRET not in json.dumps(told)
    page = site.raw("GET", f"{ROOT}/{name}/instances/{made}/events", headers={"Accept": "application/json"})[
        2
    ]
    assert page["events"] == told and page["is_over"] is True


def test_a_stream_goes_on_behind_the_last_event_id(site: Site) -> None:
    """semantics §7: exclusive of the cursor; after the end there is nothing to come back for (204)."""
    name, made = "api_steps", site.create("api_steps", 5)
    await_status(site, name, made, "complete")
    with Stream(site, name, made) as stream:
        told = list(stream.events())
    with Stream(site, name, made, **{"Last-Event-ID": str(told[3]["event_id"])}) as stream:
        assert list(stream.events()) == told[4:]
    with Stream(site, name, made, query=f"?after={told[3]['event_id']}&types=step_started") as stream:
        assert [each["type"] for each in stream.events()] == ["step_started"] * 4
    with Stream(site, name, made, **{"Last-Event-ID": str(told[-1]["event_id"])}) as stream:
        assert stream.answer.status == 204
    for headers, status in (({"Last-Event-ID": "x"}, 422), ({"Last-Event-ID": str(10**9)}, 422)):
        with Stream(site, name, made, **headers) as stream:
            assert stream.answer.status == status
    with Stream(site, name, "nobody") as stream:
        assert stream.answer.status == 404


def test_a_silent_stream_is_kept_alive_by_comments(site: Site) -> None:
    made = site.create("api_order", {"number": 1})
    await_status(site, "api_order", made, "waiting")
    with Stream(site, "api_order", made, query="?heartbeat=1") as stream:
        messages = stream.messages()
        assert next(message for message in messages if "" in message)[""] == "still here"


def test_many_follow_one_instance_and_who_goes_away_leaves_nothing(
    site: Site, environ: dict[str, str]
) -> None:
    """One subscription serves all who follow an instance; those who went away are forgotten."""
    name, made = "api_order", site.create("api_order", {"number": 1})
    await_status(site, name, made, "waiting")
    streams = [Stream(site, name, made) for _ in range(40)]
    for stream in streams[:20]:
        stream.__exit__()
    told: list[list[str]] = [[] for _ in range(20)]

    def listen(stream: Stream, into: list[str]) -> None:
        into.extend(each["type"] for each in stream.events())

    threads = [
        threading.Thread(target=listen, args=(stream, into))
        for stream, into in zip(streams[20:], told, strict=True)
    ]
    for thread in threads:
        thread.start()
    site.verb("send-event", name, made, {"type": "approval", "payload": {"by": "ann"}})
    for thread in threads:
        thread.join(30)
    assert all(each == told[0] and each[-1] == "workflow_completed" for each in told)
    for stream in streams[20:]:
        stream.__exit__()


def test_a_stream_of_an_instance_that_is_deleted_says_so(site: Site) -> None:
    """semantics §4: everything is gone."""
    made = site.create("api_order", {"number": 1})
    await_status(site, "api_order", made, "waiting")
    with Stream(site, "api_order", made) as stream:
        messages = stream.messages()
        next(message for message in messages if "wait_started" in message.get("data", ""))
        assert site.call("DELETE", f"{ROOT}/{{name:api_order}}/instances/{{id:{made}}}") == 204
        last = next(message for message in messages if "event" in message)
    assert last["event"] == "problem" and json.loads(last["data"])["error"]["code"] == "instance_not_found"


def test_a_flower_without_the_code_shows_and_steers_the_same(flowers: tuple[Site, Site, Site]) -> None:
    """ADR 15: what is registered needs no import; params are then checked by the worker that runs them."""
    guarded = flowers[1]
    one = guarded.call("GET", f"{ROOT}/{{name:api_order}}")
    assert one["params_schema"] is None and one["version"] == "1"
    made = guarded.create("api_order", {"number": 3})
    await_status(guarded, "api_order", made, "waiting")
    assert (
        guarded.call("GET", f"{ROOT}/{{name:api_order}}/instances/{{id:{made}}}/trace")["trace"] is not None
    )
    assert guarded.verb("send-event", "api_order", made, {"type": "approval", "payload": {"by": "bo"}}) == 204
    await_status(guarded, "api_order", made, "complete")


def test_with_a_password_nothing_answers_without_it(flowers: tuple[Site, Site, Site]) -> None:
    guarded = flowers[1]
    stranger = Site(guarded.host)
    for path in guarded.document["paths"]:
        for method in ("GET", "POST", "DELETE"):
            status, _, content = stranger.raw(
                method, path.replace("{", "").replace("}", ""), b"{}" if method == "POST" else None
            )
            assert status in (401, 403, 405), f"{method} {path} answers {status}"
            assert b"hunter2" not in json.dumps(content, default=str).encode()
    wrong = {"Authorization": "Basic " + base64.b64encode(b"ann:guess").decode()}
    assert stranger.raw("GET", ROOT, headers=wrong)[0] == 401


def test_a_request_that_another_site_caused_is_refused(site: Site, flowers: tuple[Site, Site, Site]) -> None:
    path = f"{ROOT}/api_order/instances"
    for one in (site, flowers[1]):
        for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://evil.example"}):
            status, _, content = one.raw("POST", path, {"params": {"number": 1}}, headers)
            assert (status, content["error"]["code"]) == (403, "forbidden"), headers


def test_read_only_shows_all_and_changes_nothing(flowers: tuple[Site, Site, Site]) -> None:
    site, _, reading = flowers
    made = site.create("api_order", {"number": 1})
    await_status(reading, "api_order", made, "waiting")
    assert reading.document["servers"] == [{"url": "/mon"}]
    path = f"{ROOT}/{{name:api_order}}/instances/{{id:{made}}}"
    assert reading.call("DELETE", path) == (403, "forbidden")
    assert reading.call("POST", f"{ROOT}/{{name:api_order}}/instances", {"params": {"number": 1}}) == (
        403,
        "forbidden",
    )
    for verb in ("pause", "resume", "terminate", "restart", "send-event", "retry-rollback", "skip-rollback"):
        assert reading.verb(verb, "api_order", made) == (403, "forbidden")
    for headers in ({}, {"Sec-Fetch-Site": "same-origin"}):  # a token, or a password, would not help
        content = Site(reading.host, reading.prefix, reading.headers).raw(
            "POST", f"/api/workflows/api_order/instances/{made}/pause", {}, headers
        )[2]
        assert "read-only" in content["error"]["message"]
    with Stream(reading, "api_order", made) as stream:
        assert next(stream.events())["type"] == "workflow_queued"
    assert reading.status("api_order", made) == "waiting"
