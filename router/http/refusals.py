"""Refusing by name what a body asks for and this service does not do.

A field of OpenAI, vLLM or SGLang that would change the answer must not be passed over. Fields that
only hint (``user``, ``store``, ``reasoning_effort``, ...) are, and unknown ones: they are in no
schema. This module does not know what is done with the fields that are supported (jobs.py).
"""

from __future__ import annotations

from pdserve.errors import InvalidRequest
from router.http.schemas import ChatRequest, CompletionRequest, GenerationRequest

_CONSTRAINED = "is not supported: answers are free text only"
_UNSUPPORTED = {
    "structured_outputs": _CONSTRAINED,
    "guided_json": _CONSTRAINED,
    "guided_regex": _CONSTRAINED,
    "guided_choice": _CONSTRAINED,
    "guided_grammar": _CONSTRAINED,
    "guided_structural_tag": _CONSTRAINED,
    "grammar": _CONSTRAINED,
    "regex": _CONSTRAINED,
    "json_schema": _CONSTRAINED,
    "ebnf": _CONSTRAINED,
    "structural_tag": _CONSTRAINED,
    "lora_path": "is not supported: the model is served as it is",
    "logits_processors": "are not supported; logit_bias can favour and bar tokens",
    "custom_logit_processor": "is not supported; logit_bias can favour and bar tokens",
    "stop_regex": "is not supported; stop takes strings",
    "return_token_ids": "is not supported: /tokenize gives the ids of a text",
    "return_hidden_states": "is not supported",
    "kv_transfer_params": "is not supported: the router places KV itself",
    "use_beam_search": "is not supported: tokens are sampled",
    "prompt_logprobs": "is not supported: only generated tokens have log probabilities",
    "prompt_embeds": "is not supported: a prompt is text or token ids",
    "truncate_prompt_tokens": "is not supported: a prompt that is too long is refused",
    "include_stop_str_in_output": "is not supported: the text ends before a stop string",
    "allowed_token_ids": "is not supported; logit_bias can favour tokens",
    "bad_words": "is not supported; logit_bias can bar tokens",
}
_UNSUPPORTED_IN_CHAT = {
    "tools": "are not supported: answers are not searched for calls of tools",
    "functions": "are not supported: answers are not searched for calls of functions",
    "audio": "is not supported: answers are text",
    "web_search_options": "is not supported",
    "documents": "are not supported",
    "chat_template": "is not supported: the model's own is used",
    "chat_template_kwargs": "is not supported",
    "continue_final_message": "is not supported: the answer is a new message",
}


def check_common(body: GenerationRequest) -> None:
    """Raises InvalidRequest naming the first field that cannot be honoured."""
    _refuse_given(body, _UNSUPPORTED)
    wanted = body.response_format
    refuse(
        "response_format.type",
        wanted is not None and wanted.type != "text",
        f"only 'text' is supported, not {wanted and wanted.type!r}",
    )
    refuse(
        "length_penalty",
        body.length_penalty not in (None, 1),
        "only 1 is supported: there is no beam search",
    )
    refuse("skip_special_tokens", body.skip_special_tokens is False, "only true is supported")


def check_completion(body: CompletionRequest) -> None:
    """As ``check_common``, for what only this endpoint has."""
    check_common(body)
    refuse("suffix", bool(body.suffix), "is not supported: text is only ever continued")
    refuse(
        "add_special_tokens",
        body.add_special_tokens is False,
        "only true is supported; send the prompt as token ids instead",
    )
    refuse(
        "logprobs",
        bool(body.echo) and body.logprobs is not None,
        "is not supported together with echo: only generated tokens have log probabilities",
    )


def check_chat(body: ChatRequest) -> None:
    """As ``check_common``, for what only this endpoint has."""
    check_common(body)
    _refuse_given(body, _UNSUPPORTED_IN_CHAT)
    for field in ("tool_choice", "function_call"):
        refuse(
            field,
            getattr(body, field) not in (None, "none", "auto"),
            "only 'none' and 'auto' are supported, since there are no tools",
        )
    refuse("modalities", body.modalities not in (None, [], ["text"]), "only 'text' is supported")
    refuse(
        "add_generation_prompt",
        body.add_generation_prompt is False,
        "only true is supported: the answer is a new message",
    )


def refuse(field: str, wrong: bool, problem: str) -> None:
    if wrong:
        raise InvalidRequest(field, problem)


def _refuse_given(body: GenerationRequest, unsupported: dict[str, str]) -> None:
    for field, problem in unsupported.items():
        value = getattr(body, field)
        # not "if value": 0 log probabilities of the prompt are something that was asked for
        nothing = value is None or value is False or value in ("", [], {})
        refuse(field, not nothing, problem)
