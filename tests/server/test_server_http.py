"""The HTTP routes of the server: sessions, prompts, health, and the API description."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import cv2
import httpx
import jsonschema_rs
import numpy as np
import pytest
from serving import TOKEN, Running, bearer, one_object, running, until
from starlette.routing import Route, WebSocketRoute
from stub_engine import StubEngine

from vosengine.prompts import METHODS, mask_from
from vosengine.server import app, page, protocol
from vosengine.server.app import make_app
from vosengine.server.openapi import document


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    with running(StubEngine(), tokens=(TOKEN, "other-token")) as running_server:
        yield running_server


@pytest.fixture
def server(shared: Running) -> Iterator[Running]:
    yield shared
    for session in shared.http.get("/v1/sessions").json():
        shared.http.delete(f"/v1/sessions/{session['id']}")


def code_of(answer: httpx.Response) -> str:
    """The code of an error, whose message is not empty."""
    error = answer.json()["error"]
    assert set(error) == {"code", "message"} and error["message"]
    return str(error["code"])


def test_a_session_is_made_shown_and_ended(server: Running) -> None:
    made = server.open(policy="all", reply="rle", max_objects=3)
    assert re.fullmatch("[0-9a-f]{32}", made["id"]) and len(made["token"]) >= 32
    assert made == {
        "id": made["id"], "token": made["token"], "model": "stub", "policy": "all", "reply": "rle",
        "window": 2, "max_message": 4194304, "next_frame": 0, "ids": [], "needs_mask": True,
        "takes_mask": True,
    }  # fmt: skip
    path = f"/v1/sessions/{made['id']}"
    status = server.http.get(path, headers=bearer(made["token"])).json()
    assert (status["state"], status["frames"], status["memory_bytes"]) == ("idle", 0, 0)
    with server.connect(made) as line:
        line.frame(0, 0, one_object(3))
        line.hear()
        status = server.http.get(path).json()
        assert (status["state"], status["ids"], status["next_frame"]) == ("live", [3], 1)
        assert (status["frames"], status["memory_bytes"]) == (1, 1000)
        assert [session["id"] for session in server.http.get("/v1/sessions").json()] == [made["id"]]
        assert server.http.delete(path + "/objects/9").status_code == 404
        assert server.http.delete(path + "/objects/x").status_code == 404
        assert server.http.delete(path + "/objects/3").status_code == 204
        assert line.hear() == {"type": "removed", "object": 3, "ids": []}
    assert server.http.delete(path).status_code == 204
    assert server.http.get(path).status_code == 404
    assert server.http.delete(path).status_code == 404
    stream = server.service.engine.opened[-1]
    assert until(lambda: stream.closed)


@pytest.mark.parametrize(
    "body",
    [
        [], 3, "x", {"zoom": 1}, {"model": "munet"}, {"model": 1}, {"policy": "best"},
        {"policy": ["all"]}, {"reply": "gif"}, {"max_objects": 0}, {"max_objects": 33},
        {"max_objects": True}, {"max_objects": "3"}, {"size": 16}, {"size": [480]},
        {"size": [480, 1e9]}, {"size": "480"}, {"memory": "every-5"}, {"memory": 5},
        {"resume_from": 5},
    ],
)  # fmt: skip
def test_a_bad_option_is_refused_by_name(server: Running, body: Any) -> None:
    answer = server.http.post("/v1/sessions", json=body)
    assert (answer.status_code, code_of(answer)) == (400, "bad_option")
    if isinstance(body, dict):
        assert next(iter(body)) in answer.json()["error"]["message"]
    assert server.http.get("/v1/sessions").json() == []


def test_what_is_no_json_is_refused(server: Running) -> None:
    for body in (b"{", b"\xff\xfe", b"[" * 10000):
        answer = server.http.post("/v1/sessions", content=body)
        assert (answer.status_code, code_of(answer)) == (400, "bad_json")
    assert server.http.post("/v1/sessions").status_code == 201  # none is {}
    answer = server.http.post("/v1/sessions", content=b" " * 70000)
    assert (answer.status_code, code_of(answer)) == (413, "too_large")


def test_tokens_open_what_is_theirs(server: Running) -> None:
    mine, other = server.open(), server.open()
    path = f"/v1/sessions/{mine['id']}"
    with httpx.Client(base_url=server.url) as nobody:
        for headers in ({}, bearer("wrong"), {"Authorization": "Basic x"}):
            for answer in (
                nobody.post("/v1/sessions", json={}, headers=headers),
                nobody.post("/v1/sessions", json={"resume_from": mine["id"]}, headers=headers),
                nobody.get("/v1/sessions", headers=headers),
                nobody.post("/v1/prompt", headers=headers),
            ):
                assert (answer.status_code, code_of(answer)) == (401, "token")
        for token in ("wrong", other["token"], "other-token"):
            for answer in (
                nobody.get(path, headers=bearer(token)),
                nobody.delete(path, headers=bearer(token)),
                nobody.delete(path + "/objects/1", headers=bearer(token)),
            ):
                assert (answer.status_code, code_of(answer)) == (404, "no_session")
        assert nobody.get(path).status_code == 404
        assert nobody.get(path, headers=bearer(mine["token"])).status_code == 200
        listed = nobody.get("/v1/sessions", headers=bearer(mine["token"])).json()
        assert [session["id"] for session in listed] == [mine["id"]]
        assert nobody.get("/v1/sessions", headers=bearer("other-token")).json() == []
        # A session's own token makes no other.
        answer = nobody.post("/v1/sessions", json={}, headers=bearer(mine["token"]))
        assert answer.status_code == 401


@pytest.mark.parametrize("wrong", ["../../etc/passwd", "%2e%2e%2f", "0" * 31, "G" * 32, "a" * 9000])
def test_an_id_that_is_none_is_not_found(server: Running, wrong: str) -> None:
    answer = server.http.get(f"/v1/sessions/{wrong}")
    assert answer.status_code == 404
    answer = server.http.post("/v1/sessions", json={"resume_from": wrong})
    assert (answer.status_code, code_of(answer)) == (404, "no_session")


def test_a_running_session_is_gone_on_with(server: Running) -> None:
    made = server.open()
    with server.connect(made) as line:
        line.frame(0, 0, one_object())
        line.hear()
    again = server.http.post("/v1/sessions", json={"resume_from": made["id"]}).json()
    assert (again["id"], again["next_frame"], again["ids"]) == (made["id"], 1, [1])
    assert again["token"] != made["token"]
    for token in (again["token"], made["token"]):  # both are good
        path = f"/v1/sessions/{made['id']}"
        assert httpx.get(server.url + path, headers=bearer(token)).status_code == 200
    by_itself = httpx.post(
        server.url + "/v1/sessions",
        json={"resume_from": made["id"]},
        headers=bearer(made["token"]),
    ).json()
    assert by_itself["token"] == made["token"]


def test_prompts_become_masks(server: Running) -> None:
    """Masks equal those of `mask_from` on the picture in its own colours."""
    frame = np.random.default_rng(0).integers(0, 60, (48, 64, 3), dtype=np.uint8)
    frame[10:30, 20:44] += np.array([180, 20, 0], np.uint8)
    body = protocol.image_bytes(frame[..., ::-1], ".png")
    for method in METHODS:
        path = f"/v1/prompt?box=16,8,32,26&point=30,20&point=18,28,-&method={method}"
        answer = server.http.post(path, content=body)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
        mask = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_UNCHANGED)
        points = [(30, 20, True), (18, 28, False)]
        wanted = mask_from(frame, box=(16, 8, 32, 26), points=points, method=method)
        assert wanted.any()
        np.testing.assert_array_equal(mask, 255 * wanted)
    for query in ("", "?box=1,2,3", "?box=1,2,3,-4", "?point=1", "?point=a,b", "?box=1,2,3,4&box=",
                  "?method=magic&box=1,2,3,4", "?" + "&".join(["point=1,1"] * 300)):  # fmt: skip
        answer = server.http.post(f"/v1/prompt{query}", content=body)
        assert (answer.status_code, code_of(answer)) == (400, "bad_prompt"), query
    for wrong in (b"", b"GIF89a", body[:60]):
        answer = server.http.post("/v1/prompt?box=1,2,3,4", content=wrong)
        assert (answer.status_code, code_of(answer)) == (400, "bad_prompt")
    answer = server.http.post("/v1/prompt?box=1,2,3,4", content=bytes(5 << 20))
    assert (answer.status_code, code_of(answer)) == (413, "too_large")


def test_more_prompts_than_wait_are_refused(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = protocol.image_bytes(np.zeros((48, 64, 3), np.uint8), ".png")
    with monkeypatch.context() as patch:
        patch.setattr(app, "MOST_PROMPTS", 0)
        answer = server.http.post("/v1/prompt?box=1,2,3,4", content=body)
    assert (answer.status_code, code_of(answer)) == (429, "busy")
    assert answer.headers["retry-after"] == "1"
    assert server.http.post("/v1/prompt?box=1,2,3,4", content=body).status_code == 200


def test_health_metrics_and_models_need_no_token(server: Running) -> None:
    session = server.open()
    with server.connect(session) as line:
        line.frame(0, 0, one_object())
        line.hear()
        line.frame(1, server.service.engine.poison)
        line.hear()
    with httpx.Client(base_url=server.url) as nobody:
        assert nobody.get("/healthz").json() == {"ok": True}
        assert nobody.get("/readyz").json() == {"ready": True}
        (model,) = nobody.get("/v1/models").json()["models"]
        assert (model["name"], model["needs_mask"], model["latency"]) == ("stub", True, 0)
        metrics = nobody.get("/metrics").text
    names = set(re.findall(r"^# TYPE (\w+) ", metrics, re.M))
    wanted = {"sessions", "frames_total", "step_seconds", "queue_seconds", "batch_size", "pages"}
    wanted |= {"dropped_frames_total", "snapshot_seconds", "rejections_total", "memory_bytes"}
    assert {f"vosengine_{name}" for name in wanted} <= names
    assert 'vosengine_frames_total{outcome="failed"}' in metrics
    assert session["id"] not in metrics and session["token"] not in metrics


def test_every_answer_has_its_security_headers(server: Running) -> None:
    for path in ("/healthz", "/v1/sessions", "/nowhere", "/metrics"):
        headers = server.http.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"].startswith("default-src 'self'")
        assert f"ws://{server.url[7:]}" in headers["content-security-policy"]
        assert "access-control-allow-origin" not in headers
        assert "server" not in headers


def test_a_route_that_is_none_says_so(server: Running) -> None:
    assert code_of(server.http.get("/v1/nothing")) == "no_route"
    answer = server.http.put("/v1/sessions")
    assert (answer.status_code, code_of(answer)) == (405, "no_method")


def test_the_description_has_every_route_and_its_answers(server: Running) -> None:
    described = server.http.get("/openapi.json").json()
    assert described == document(4 << 20)
    routes = [r for r in make_app(server.service).routes if isinstance(r, Route)]
    served = {
        (r.path, m.lower())
        for r in routes
        for m in r.methods or ()
        if m != "HEAD" and r.path.startswith(("/v1", "/healthz", "/readyz", "/metrics", "/openapi"))
    }
    documented = {(path, verb) for path, verbs in described["paths"].items() for verb in verbs}
    assert served == documented
    made = server.open()
    bodies = {
        "Made": made,
        "Session": server.http.get(f"/v1/sessions/{made['id']}").json(),
        "Models": server.http.get("/v1/models").json(),
        "Health": server.http.get("/healthz").json(),
        "Readiness": server.http.get("/readyz").json(),
        "Error": server.http.get("/v1/sessions/x").json(),
    }
    for name, body in bodies.items():
        jsonschema_rs.validate(described["components"]["schemas"][name], body)


def test_the_page_is_its_files_and_no_others(tmp_path: Any) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "index.html").write_text("<p>")
    (tmp_path / "parts" / "a.js").write_text("1")
    (tmp_path / "notes.txt").write_text("no")
    routes = {route.path for route in page.page_routes(tmp_path)}
    assert routes == {"/", "/index.html", "/parts/a.js"}
    assert not any(isinstance(route, WebSocketRoute) for route in page.page_routes(tmp_path))


@pytest.mark.slow
def test_without_its_extra_the_command_says_how_to_get_it() -> None:
    code = (
        "import sys; sys.modules['uvicorn'] = None; sys.argv = ['vosengine', 'serve'];"
        "from vosengine.cli.app import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "DependencyError" in done.stderr and "vosengine[serve]" in done.stderr
    assert "Traceback" not in done.stderr
