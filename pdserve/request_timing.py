"""The ledger of a request as a value; docs/ledger.md says what each part is and who measures it.

This module measures nothing: router/ledger.py and router/face_timing.py fill it in.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RequestTiming:
    """The ledger of one request, all in seconds unless named otherwise.

    ``receive + tokenize + queue + prefill_queue + prefill_compute + first_token_return +
    first_token_send`` is the TTFT of a streaming client but for its own connection;
    ``kv_exposed + decode_queue + decode_first_step + token_return`` is the gap between token 1 and
    token 2 at the router. Remainders (the ``*_return`` parts and ``first_token_send``) are
    differences of two stamps of the router's clock, less the other parts (docs/ledger.md).
    """

    before_face_s: float = 0.0  # as its sender states it, on that clock; in no sum
    receive_s: float = 0.0  # the request's arrival at the face -> read and understood
    tokenize_s: float = 0.0
    queue_s: float = 0.0
    prefill_queue_s: float = 0.0
    prefill_compute_s: float = 0.0
    first_token_return_s: float = 0.0
    first_token_send_s: float = 0.0  # at the router -> written to a streaming client's connection
    kv_bytes: int = 0
    kv_tokens: int = 0
    kv_transport: str = ""
    kv_coding: str = ""  # "int8" or "fp8" if it travelled in 8 bits a value; empty: exact
    kv_passed_over: str = ""  # transports that come before kv_transport and could not be reached
    kv_transfer_s: float = 0.0
    kv_exposed_s: float = 0.0  # first token at the router -> committed at the router
    decode_queue_s: float = 0.0
    decode_first_step_s: float = 0.0
    token_return_s: float = 0.0
    total_s: float = 0.0
    prefill_worker: str = ""
    decode_worker: str = ""
    num_dispatches: int = 0
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    prefill_cached_tokens: int = 0  # of the prompt, not computed again for the first token
    kv_cached_tokens: int = 0  # of the context, that the decode worker had already
    explanation: str = ""  # of the choice of workers, if the client asked for it
    prefill_place: str = ""  # "remote", "colocated", "shared", or "local: " and why

    @property
    def ttft_s(self) -> float:
        return (
            self.receive_s
            + self.tokenize_s
            + self.queue_s
            + self.prefill_queue_s
            + self.prefill_compute_s
            + self.first_token_return_s
            + self.first_token_send_s
        )

    @property
    def client_ttft_s(self) -> float:
        """From when the sender says it began; as true as its clock agrees with the router's."""
        return self.before_face_s + self.ttft_s

    @property
    def first_gap_s(self) -> float:
        return (
            self.kv_exposed_s + self.decode_queue_s + self.decode_first_step_s + self.token_return_s
        )
