"""Request ids in and out of every endpoint; CORS where it is allowed."""

from __future__ import annotations

import pytest

from router.http.config import HttpConfig
from support.http_face import CHAT, HELLO, http_face
from support.scripted_tokens import script

ORIGIN = "https://chat.example"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/health", 200),
        ("GET", "/v1/models", 200),
        ("GET", "/metrics", 200),
        ("GET", "/nowhere", 404),
        ("GET", CHAT, 405),
        ("POST", "/tokenize", 400),
        ("POST", CHAT, 400),
    ],
)
async def test_every_response_repeats_the_id(method: str, path: str, status: int) -> None:
    async with http_face(script("x")) as face:
        response = await face.client.request(method, path, headers={"x-request-id": "a-1"})
        assert (response.status_code, response.headers["x-request-id"]) == (status, "a-1")
        other = await face.client.request(method, path)
        assert other.headers["x-request-id"].startswith("req-")


async def test_a_bug_has_an_id_too() -> None:
    async with http_face(script("x")) as face:
        face.tokens.start = None  # type: ignore[assignment, method-assign]
        response = await face.client.post(
            CHAT, json={"messages": HELLO}, headers={"x-request-id": "a-1"}
        )
        assert (response.status_code, response.headers["x-request-id"]) == (500, "a-1")


async def test_a_stream_has_an_id() -> None:
    async with http_face(script("x")) as face:
        response = await face.client.post(
            CHAT, json={"messages": HELLO, "stream": True}, headers={"x-request-id": "a-1"}
        )
        assert response.headers["x-request-id"] == "a-1"
        assert face.tokens.requests[0].request_id.startswith("a-1-")


@pytest.mark.parametrize("given", ["x" * 97, "a b", "ä", 'a"b', ""])
async def test_an_unusable_id_is_replaced(given: str) -> None:
    async with http_face(script("x")) as face:
        headers = {"x-request-id": given.encode()}
        response = await face.client.get("/health", headers=headers)  # type: ignore[arg-type]
        assert response.headers["x-request-id"].startswith("req-")


PREFLIGHT = {
    "origin": ORIGIN,
    "access-control-request-method": "POST",
    "access-control-request-headers": "content-type,authorization",
}


@pytest.mark.parametrize("allowed", [ORIGIN, "*"])
async def test_pages_of_allowed_origins_may_call(allowed: str) -> None:
    async with http_face(script("x"), config=HttpConfig(cors_origins=(allowed,))) as face:
        asked = await face.client.options(CHAT, headers=PREFLIGHT)
        assert asked.status_code == 200
        assert asked.headers["access-control-allow-origin"] == allowed
        assert "authorization" in asked.headers["access-control-allow-headers"]
        for path, status in ((CHAT, 400), ("/nowhere", 404)):
            response = await face.client.post(path, headers={"origin": ORIGIN})
            assert response.status_code == status
            assert response.headers["access-control-allow-origin"] == allowed
            assert "x-request-id" in response.headers["access-control-expose-headers"]


async def test_other_pages_may_not() -> None:
    config = HttpConfig(cors_origins=("https://other.example",))
    for face_config in (config, None):
        async with http_face(script("x"), config=face_config) as face:
            asked = await face.client.options(CHAT, headers=PREFLIGHT)
            assert asked.status_code in (400, 405)
            response = await face.client.get("/health", headers={"origin": ORIGIN})
            assert response.status_code == 200  # who is no browser is not kept out
            assert "access-control-allow-origin" not in response.headers
