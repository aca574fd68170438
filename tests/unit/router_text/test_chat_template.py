"""Chat templates render as transformers renders them."""

from __future__ import annotations

import pytest

from pdserve.errors import InvalidRequest, ModelFileError
from router.chat_template import ChatMessage, ChatTemplate

HELLO = (ChatMessage("system", "Be brief."), ChatMessage("user", "Hi <there> ü"))


def render(source: str, messages: tuple[ChatMessage, ...] = HELLO) -> str:
    return ChatTemplate(source, bos_token="<s>", eos_token="</s>").render(messages)


def test_messages_tokens_and_the_opening_of_the_answer() -> None:
    source = (
        "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m.content }}{{ eos_token }}"
        "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    assert render(source) == "<s>system: Be brief.</s>user: Hi <there> ü</s>assistant:"


def test_blocks_are_trimmed_and_loops_can_be_broken() -> None:
    source = "{% for m in messages %}\n  {% if loop.first %}\n{{ m.role }}\n  {% break %}\n"
    assert render(source + "  {% endif %}\n{% endfor %}\n") == "system\n"


def test_tojson_does_not_escape_for_html() -> None:
    assert render("{{ messages[1].content | tojson }}") == '"Hi <there> ü"'


def test_names_tools_and_time_are_there() -> None:
    named = (ChatMessage("user", "x", name="Ada"),)
    assert render("{{ messages[0].name }}{% if not tools %}!{% endif %}", named) == "Ada!"
    assert len(render("{{ strftime_now('%Y') }}")) == 4


def test_generation_blocks_are_plain() -> None:
    assert render("a{% generation %}b{{ eos_token }}{% endgeneration %}c") == "ab</s>c"


def test_a_refusal_of_the_template_is_the_clients_error() -> None:
    with pytest.raises(InvalidRequest, match="roles must alternate") as caught:
        render("{{ raise_exception('roles must alternate') }}")
    assert caught.value.field == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[7].content }}",
        "{{ messages[0].content + 1 }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append('x') }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
    ],
)
def test_templates_cannot_break_out(source: str) -> None:
    with pytest.raises(InvalidRequest, match="refused by the chat template"):
        render(source)


def test_no_message_and_no_template() -> None:
    with pytest.raises(InvalidRequest, match="at least one message"):
        render("x", ())
    with pytest.raises(ModelFileError, match="chat_template"):
        render("{% for %}")
