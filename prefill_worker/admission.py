"""Whether a Submit makes sense at this worker at all. Pure.

What is refused here would be refused at any time, so it is a failure of the leg and not Busy.
The router checks the same things earlier and in the client's words; this is the last guard.
"""

from __future__ import annotations

from pdserve.errors import ContextTooLong, InvalidRequest, PdserveError, TicketUnknown
from pdserve.messages import Hello, Submit


def find_fault(submit: Submit, hello: Hello) -> PdserveError | None:
    """What is wrong with ``submit`` for the worker that said ``hello``, or None."""
    attempt, limits = submit.attempt, hello.limits
    num_tokens = attempt.num_context_tokens
    if num_tokens > limits.max_model_len:
        return ContextTooLong("prompt", f"{num_tokens} tokens, at most {limits.max_model_len}")
    if hello.layout.num_blocks(num_tokens) > limits.total_blocks:
        return InvalidRequest(
            "prompt", f"{num_tokens} tokens never fit {limits.total_blocks} KV blocks"
        )
    wrong_ids = [i for i in attempt.context_ids if not 0 <= i < limits.vocab_size]
    if wrong_ids:
        return InvalidRequest("prompt", f"token id {wrong_ids[0]} of {limits.vocab_size}")
    return _ticket_fault(submit, hello)


def _ticket_fault(submit: Submit, hello: Hello) -> PdserveError | None:
    ticket = submit.ticket
    if ticket is None:
        return None
    if (ticket.worker_id, ticket.incarnation) != (hello.worker_id, hello.incarnation):
        return TicketUnknown(f"made for {ticket.worker_id} incarnation {ticket.incarnation}")
    if ticket.epoch != submit.attempt.epoch:
        return InvalidRequest(
            "ticket", f"epoch {ticket.epoch} for an attempt of epoch {submit.attempt.epoch}"
        )
    if ticket.num_tokens != submit.attempt.num_context_tokens:
        return InvalidRequest(
            "ticket",
            f"num_tokens {ticket.num_tokens}, context of {submit.attempt.num_context_tokens}",
        )
    return None
