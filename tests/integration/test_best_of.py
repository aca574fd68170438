"""best_of by both faces of a whole service: the same answers, by the same rule, over real wires."""

from __future__ import annotations

import grpc.aio
import httpx
import pytest

from pdserve.errors import InvalidRequest
from pdserve.v1 import inference_service_pb2 as pb
from pdserve.v1 import inference_service_pb2_grpc as pb_grpc
from router.client import AsyncClient
from support.local_service import FAKE, inproc_service

PROMPT = [72, 105, 32, 116, 104, 101, 114, 101]
BEST_OF, TOLD = 6, 3


@pytest.mark.parametrize("mode", ["disaggregated", "colocated"])
async def test_both_faces_tell_the_same_best_of_all(mode: str) -> None:
    async with inproc_service(*FAKE, f"--mode={mode}") as service:
        address = service.address
        base = f"http://{address.host}:{address.http_port}"
        body = {
            "prompt": PROMPT, "max_tokens": 200, "seed": 5, "temperature": 1.0,
            "n": TOLD, "best_of": BEST_OF,
        }  # fmt: skip
        async with httpx.AsyncClient(base_url=base) as http:
            answer = (await http.post("/v1/completions", json=body)).raise_for_status().json()
        asked = pb.GenerateRequest(
            token_ids=pb.TokenIds(ids=PROMPT), num_answers=BEST_OF,
            sampling=pb.SamplingOptions(max_tokens=200, seed=5, num_logprobs=0),
        )  # fmt: skip
        async with grpc.aio.insecure_channel(address.grpc_target) as channel:
            stub = pb_grpc.InferenceServiceStub(channel)  # type: ignore[no-untyped-call]
            texts: list[str] = [""] * BEST_OF
            logprobs: list[list[float]] = [[] for _ in range(BEST_OF)]
            async for part in stub.Generate(asked):
                texts[part.answer_index] += part.text_delta
                logprobs[part.answer_index] += [token.chosen.logprob for token in part.logprobs]
            asked.num_answers, asked.best_of = TOLD, BEST_OF
            best = [""] * TOLD
            async for part in stub.Generate(asked):
                best[part.answer_index] += part.text_delta
                usage = part.usage
    means = [sum(each) / len(each) for each in logprobs]
    ranks = sorted(range(BEST_OF), key=means.__getitem__, reverse=True)
    assert len(set(means)) > TOLD, "too much alike to be chosen from"
    assert ranks != sorted(ranks)
    assert best == [texts[i] for i in ranks[:TOLD]]
    assert [choice["text"] for choice in answer["choices"]] == best
    assert usage.num_completion_tokens == sum(map(len, logprobs))
    assert answer["usage"]["completion_tokens"] == usage.num_completion_tokens
    assert usage.num_prompt_tokens == answer["usage"]["prompt_tokens"] == len(PROMPT)


async def test_the_client_offers_it_and_refusals_name_it() -> None:
    async with inproc_service(*FAKE) as service:
        target = service.address.grpc_target
        async with AsyncClient(target) as client:
            stream = client.generate("Hi", max_tokens=3, ignore_eos=True, best_of=4)
            (delta,) = [delta async for delta in stream]
            assert (delta.answer_index, len(delta.token_ids)) == (0, 3)
            assert delta.usage is not None
            assert delta.usage.num_completion_tokens == 12
            with pytest.raises(InvalidRequest, match=r"best_of: must lie in \[num_answers = 3"):
                async for _ in client.generate("Hi", num_answers=3, best_of=2):
                    pass
            status = await client.cluster_status()
        assert status.num_in_flight == 0
