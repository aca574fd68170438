"""Routing decisions of a request (pdserve/explained.py) as messages of the public face and back."""

from __future__ import annotations

from pdserve.errors import InvalidRequest
from pdserve.explained import Candidate, CostPart, RequestDecisions, RouteDecision
from pdserve.rpc.codec_public import refuse_nonsense
from pdserve.types import WorkerId
from pdserve.v1 import inference_service_pb2 as pb


def decode_explain_request(data: bytes) -> str:
    """The request that is asked for. Raises InvalidRequest."""
    refuse_nonsense(pb.ExplainRequest, data)
    request_id = pb.ExplainRequest.FromString(data).request_id
    if not request_id:
        raise InvalidRequest("request_id", "must not be empty")
    return str(request_id)


def encode_explained(found: RequestDecisions) -> pb.ExplainResponse:
    return pb.ExplainResponse(
        request_id=found.request_id,
        policy=found.policy,
        salted=found.salted,
        decisions=[_decision_to_pb(decision) for decision in found.decisions],
    )


def decode_explained(message: pb.ExplainResponse) -> RequestDecisions:
    return RequestDecisions(
        message.request_id,
        message.policy,
        message.salted,
        tuple(_decision_from_pb(decision) for decision in message.decisions),
    )


def _decision_to_pb(decision: RouteDecision) -> pb.RouteDecision:
    return pb.RouteDecision(
        attempt=decision.attempt,
        at_s=decision.at_s,
        waits=decision.waits,
        prefill_place=decision.prefill_place,
        place_reason=decision.place_reason,
        num_context_tokens=decision.num_context_tokens,
        expected_tokens=decision.expected_tokens,
        max_tokens=decision.max_tokens,
        num_workers=decision.num_workers,
        candidates=[_candidate_to_pb(candidate) for candidate in decision.candidates],
        num_left_out=decision.num_left_out,
        ended=decision.ended,
    )


def _decision_from_pb(message: pb.RouteDecision) -> RouteDecision:
    return RouteDecision(
        attempt=message.attempt,
        at_s=message.at_s,
        waits=message.waits,
        prefill_place=message.prefill_place,
        place_reason=message.place_reason,
        num_context_tokens=message.num_context_tokens,
        expected_tokens=message.expected_tokens,
        max_tokens=message.max_tokens,
        num_workers=message.num_workers,
        candidates=tuple(_candidate_from_pb(candidate) for candidate in message.candidates),
        num_left_out=message.num_left_out,
        ended=message.ended,
    )


def _candidate_to_pb(candidate: Candidate) -> pb.RouteCandidate:
    return pb.RouteCandidate(
        worker_id=candidate.worker_id,
        task=candidate.task,
        chosen=candidate.chosen,
        why=candidate.why,
        excluded=candidate.excluded,
        remarks=candidate.remarks,
        parts=[pb.CostPart(name=part.name, cost_s=part.cost_s) for part in candidate.parts],
        cached_tokens=candidate.cached_tokens,
        tokens_ahead=candidate.tokens_ahead,
        num_legs=candidate.num_legs,
        free_blocks=candidate.free_blocks,
    )


def _candidate_from_pb(message: pb.RouteCandidate) -> Candidate:
    return Candidate(
        worker_id=WorkerId(message.worker_id),
        task=message.task,
        chosen=message.chosen,
        why=message.why,
        excluded=tuple(message.excluded),
        remarks=tuple(message.remarks),
        parts=tuple(CostPart(part.name, part.cost_s) for part in message.parts),
        cached_tokens=message.cached_tokens,
        tokens_ahead=message.tokens_ahead,
        num_legs=message.num_legs,
        free_blocks=message.free_blocks,
    )
