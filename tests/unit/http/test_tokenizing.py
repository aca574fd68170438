"""/tokenize and /detokenize."""

from __future__ import annotations

from typing import Any

import pytest

from router.http.config import HttpConfig
from support.http_face import HELLO, http_face
from support.scripted_tokens import BOS, END, script

CHAT_IDS = [BOS, *b"[user]Hi[assistant]"]


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"prompt": "Hé"}, [0x48, 0xC3, 0xA9]),
        ({"prompt": "H<end>", "model": "byte-model"}, [0x48, END]),
        ({"prompt": ""}, []),
        ({"prompt": "H", "add_special_tokens": False}, [0x48]),
        ({"messages": HELLO}, CHAT_IDS),
        ({"messages": HELLO, "add_generation_prompt": False}, [BOS, *b"[user]Hi"]),
        ({"prompt": "x" * 9000}, [0x78] * 9000),  # more than the context: counting is allowed
    ],
)
async def test_tokens_of_texts_and_chats(body: dict[str, Any], tokens: list[int]) -> None:
    async with http_face(script("x")) as face:
        response = await face.client.post("/tokenize", json=body)
        assert response.json() == {
            "count": len(tokens), "max_model_len": 512, "tokens": tokens,
        }  # fmt: skip


async def test_a_prompt_is_counted_as_it_will_be() -> None:
    async with http_face(script("x")) as face:
        counted = (await face.client.post("/tokenize", json={"messages": HELLO})).json()["count"]
        assert (await face.chat()).json()["usage"]["prompt_tokens"] == counted


async def test_texts_of_tokens_on_request() -> None:
    async with http_face(script("x")) as face:
        body = {"prompt": "é<end>", "return_token_strs": True}
        answer = (await face.client.post("/tokenize", json=body)).json()
        assert answer["token_strs"] == ["\ufffd", "\ufffd", "<end>"]


@pytest.mark.parametrize(
    ("tokens", "text"), [([0x48, 0xC3, 0xA9, END], "Hé<end>"), ([], ""), ([0xC3], "\ufffd")]
)
async def test_text_of_tokens(tokens: list[int], text: str) -> None:
    async with http_face(script("x")) as face:
        response = await face.client.post("/detokenize", json={"tokens": tokens})
        assert response.json() == {"prompt": text}


@pytest.mark.parametrize(
    ("path", "body", "param", "status"),
    [
        ("/tokenize", {}, "prompt", 400),
        ("/tokenize", {"prompt": "x", "messages": HELLO}, "prompt", 400),
        ("/tokenize", {"prompt": 5}, "prompt", 400),
        ("/tokenize", {"prompt": "x", "model": "other"}, "model", 404),
        ("/tokenize", {"messages": []}, "messages", 400),
        ("/tokenize", {"messages": [{"role": "robot"}]}, "messages[0].role", 400),
        ("/tokenize", {"messages": HELLO, "add_special_tokens": True}, "add_special_tokens", 400),
        ("/detokenize", {}, "tokens", 400),
        ("/detokenize", {"tokens": [259]}, "tokens", 400),
        ("/detokenize", {"tokens": [-1]}, "tokens", 400),
        ("/detokenize", {"tokens": [1], "model": "other"}, "model", 404),
    ],
)
async def test_refusals(path: str, body: dict[str, Any], param: str, status: int) -> None:
    async with http_face(script("x")) as face:
        response = await face.client.post(path, json=body)
        assert response.status_code == status
        assert response.json()["error"]["param"] == param


async def test_a_body_over_the_limit_is_not_read() -> None:
    async with http_face(script("x"), config=HttpConfig(max_body_bytes=1024)) as face:
        response = await face.client.post("/tokenize", json={"prompt": "x" * 2000})
        assert response.status_code == 413
        assert face.tokens.requests == []
