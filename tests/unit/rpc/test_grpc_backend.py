"""The text service as the public gRPC face sees it."""

from __future__ import annotations

import pytest

from pdserve.errors import InvalidRequest, PdserveError, RequestCancelled, UnknownModel
from pdserve.public import ChatMessage, GenerateJob, SamplingOptions, ToolCall, Usage
from pdserve.types import FinishReason, Role, WorkerId, WorkerLimits, WorkerStatus
from router.cluster_view import ClusterStatus, WorkerEntry
from router.grpc_backend import TextBackend
from router.text_generation import TextService
from support.scripted_tokens import MODEL_NAME, ScriptedTokens, byte_text_model, script

STATUS = ClusterStatus(
    mode="colocated",
    needed_roles=(Role.DECODE,),
    model=MODEL_NAME,
    workers=(
        WorkerEntry(
            worker_id=WorkerId("d0"),
            incarnation="i1",
            role=Role.DECODE,
            device="cpu",
            peer="inproc",
            limits=WorkerLimits(512, 64, 32, 8, 300),
            status=WorkerStatus(step=4),
            endpoints=(),
            num_legs=2,
            silent=True,
            draining=False,
        ),
    ),
    queue_len=3,
    num_in_flight=5,
    num_tickets=1,
    draining=False,
)


@pytest.fixture
def tokens() -> ScriptedTokens:
    return ScriptedTokens(script("Grüße, Welt"))


@pytest.fixture
def backend(tokens: ScriptedTokens) -> TextBackend:
    return TextBackend(TextService(tokens, byte_text_model()), lambda: STATUS)


async def test_text_comes_with_usage_at_the_end(backend: TextBackend) -> None:
    stream = await backend.generate(GenerateJob(prompt="Hi", request_id="mine"))
    deltas = [delta async for delta in stream]
    assert "".join(delta.text for delta in deltas) == "Grüße, Welt"
    assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    assert deltas[-1].finish_reason is FinishReason.STOP
    assert deltas[-1].usage == Usage(2, len("Grüße, Welt".encode()) + 1)
    assert stream.request_id == "mine"
    assert stream.timing.num_prompt_tokens == 2


async def test_defaults_are_those_of_the_http_face(
    backend: TextBackend, tokens: ScriptedTokens
) -> None:
    async for _ in await backend.generate(GenerateJob(prompt_ids=(1, 2, 3))):
        pass
    (request,) = tokens.requests
    assert request.prompt_ids == (1, 2, 3)
    assert request.sampling.temperature == 1.0
    assert request.sampling.max_tokens == tokens.model.max_model_len - 3
    assert request.deadline_s is None


async def test_options_are_handed_on(backend: TextBackend, tokens: ScriptedTokens) -> None:
    sampling = SamplingOptions(
        max_tokens=7,
        min_tokens=1,
        temperature=0.0,
        top_k=4,
        top_p=0.5,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=-1.0,
        frequency_penalty=0.25,
        logit_bias=((3, -5.0),),
        seed=9,
        stop_token_ids=(11,),
        ignore_eos=True,
        num_logprobs=2,
    )
    job = GenerateJob(prompt="Hi", sampling=sampling, priority=-2, timeout_s=60)
    deltas = [delta async for delta in await backend.generate(job)]
    (request,) = tokens.requests
    for name in SamplingOptions.__dataclass_fields__:
        assert getattr(request.sampling, name) == getattr(sampling, name), name
    assert request.priority == -2
    assert request.deadline_s is not None
    assert deltas[0].logprobs[0].chosen.utf8 == b"G"
    assert [top.token_id for top in deltas[0].logprobs[0].top] == [65, 66]


async def test_messages_go_through_the_chat_template(
    backend: TextBackend, tokens: ScriptedTokens
) -> None:
    job = GenerateJob(messages=(ChatMessage("user", "Hi"),))
    async for _ in await backend.generate(job):
        pass
    assert bytes(tokens.requests[0].prompt_ids[1:]) == b"[user]Hi[assistant]"


async def test_turns_of_tools_go_through_the_chat_template(
    backend: TextBackend, tokens: ScriptedTokens
) -> None:
    call = ToolCall("c1", "f", '{"a": 1}')
    turns = (
        ChatMessage("assistant", "", "bot", (call,)),
        ChatMessage("tool", "rain", tool_call_id="c1"),
    )
    async for _ in await backend.generate(GenerateJob(messages=turns)):
        pass
    assert bytes(tokens.requests[0].prompt_ids[1:]) == b"[assistant][tool]rain[assistant]"


@pytest.mark.parametrize("arguments", ["[1]", "{", "[" * 100_000])
async def test_arguments_that_are_no_object_are_refused(
    backend: TextBackend, tokens: ScriptedTokens, arguments: str
) -> None:
    turn = ChatMessage("assistant", "", tool_calls=(ToolCall("c1", "f", arguments),))
    with pytest.raises(InvalidRequest, match=r"messages\[0\].tool_calls\[0\].arguments_json"):
        await backend.generate(GenerateJob(messages=(turn,)))
    assert tokens.requests == []


async def test_a_stop_string_ends_the_text(backend: TextBackend, tokens: ScriptedTokens) -> None:
    stream = await backend.generate(GenerateJob(prompt="Hi", stop=(", ",)))
    assert "".join([delta.text async for delta in stream]) == "Grüße"
    assert tokens.num_running == 0


async def test_cancelling_stops_the_work(backend: TextBackend, tokens: ScriptedTokens) -> None:
    stream = await backend.generate(GenerateJob(prompt="Hi"))
    await anext(stream)
    stream.cancel("client left")
    assert [reason for _, reason in tokens.cancels] == ["client left"]
    assert tokens.num_running == 0
    with pytest.raises(RequestCancelled):
        await anext(stream)


@pytest.mark.parametrize(
    ("job", "field"),
    [
        (GenerateJob(prompt=""), "prompt"),
        (GenerateJob(prompt_ids=()), "prompt"),
        (GenerateJob(prompt_ids=(-1,)), "prompt"),
        (GenerateJob(prompt_ids=(10**9,)), "prompt"),
        (GenerateJob(prompt="x" * 600), "prompt"),
        (GenerateJob(messages=()), "messages"),
        (GenerateJob(prompt="Hi", stop=("",)), "stop"),
        (GenerateJob(prompt="Hi", timeout_s=-1), "timeout_s"),
        (GenerateJob(prompt="Hi", sampling=SamplingOptions(max_tokens=0)), "max_tokens"),
        (GenerateJob(prompt="Hi", sampling=SamplingOptions(max_tokens=-5)), "max_tokens"),
        (GenerateJob(prompt="Hi", sampling=SamplingOptions(max_tokens=10**6)), "max_tokens"),
        (GenerateJob(prompt="Hi", sampling=SamplingOptions(max_tokens=2**62)), "max_tokens"),
        (GenerateJob(prompt="Hi", sampling=SamplingOptions(temperature=-1)), "temperature"),
        (GenerateJob(prompt="Hi", sampling=SamplingOptions(top_p=float("nan"))), "top_p"),
        (GenerateJob(prompt="Hi", sampling=SamplingOptions(top_k=-1)), "top_k"),
        (GenerateJob(prompt="Hi", sampling=SamplingOptions(seed=-1)), "seed"),
        (GenerateJob(prompt="Hi", sampling=SamplingOptions(num_logprobs=21)), "num_logprobs"),
        (GenerateJob(prompt="Hi", sampling=SamplingOptions(logit_bias=((-1, 0),))), "logit_bias"),
        (GenerateJob(prompt="Hi", sampling=SamplingOptions(stop_token_ids=(-1,))), "stop_token"),
    ],
)
async def test_bad_input_is_refused_by_name(
    backend: TextBackend, tokens: ScriptedTokens, job: GenerateJob, field: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await backend.generate(job)
    assert caught.value.field.startswith(field)
    assert tokens.requests == []


async def test_another_model_is_refused(backend: TextBackend) -> None:
    with pytest.raises(UnknownModel, match="'gpt-9' is not served here"):
        await backend.generate(GenerateJob(prompt="Hi", model="gpt-9"))
    await (await backend.generate(GenerateJob(prompt="Hi", model=MODEL_NAME))).__anext__()


async def test_a_failure_midway_is_raised(tokens: ScriptedTokens) -> None:
    error = PdserveError("what happened")
    failing = ScriptedTokens(script("Hello", fail_at=2, error=error))
    backend = TextBackend(TextService(failing, byte_text_model()), lambda: STATUS)
    received = []
    with pytest.raises(PdserveError, match="what happened"):
        async for delta in await backend.generate(GenerateJob(prompt="Hi")):
            received.append(delta.text)
    assert received == ["H", "e"]


def test_models_and_status(backend: TextBackend, tokens: ScriptedTokens) -> None:
    assert backend.models() == (tokens.model,)
    view = backend.cluster_status()
    assert view.can_serve and view.mode == "colocated" and view.model == tokens.model
    assert (view.num_queued, view.num_in_flight, view.num_tickets) == (3, 5, 1)
    (worker,) = view.workers
    assert (worker.worker_id, worker.role, worker.num_legs) == ("d0", Role.DECODE, 2)
    assert worker.silent
    assert worker.status == WorkerStatus(step=4)
