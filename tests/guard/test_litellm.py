"""Requests as LiteLLM's `generic_guardrail_api` sends them: fields and names of its client, texts of our own."""

from __future__ import annotations

import json
from hashlib import sha256

import pytest

import fake_upstream
from fake_upstream import COPY, FREE, LET, PAGE, SUM
from upright.guard.policy import Policy

STOPPED = "Stopped here: more would copy a protected work. I can summarise it, or answer questions about it."
WHY = "This is a registered work (The Bell): to copy it is not permitted here. A summary or answers about it are."
RECORDED = {  # with the empty fields that its client sends
    "litellm_call_id": "0f1e2d3c-0000-4000-8000-000000000001",
    "litellm_trace_id": "0f1e2d3c-0000-4000-8000-000000000002",
    "structured_messages": None,
    "images": None,
    "tools": None,
    "tool_calls": None,
    "texts": [],
    "request_data": {"user_api_key_hash": "0" * 64, "user_api_key_user_id": "reader"},
    "request_headers": {"user-agent": "[present]"},
    "litellm_version": "1.80.0",
    "model": "fake",
    "additional_provider_specific_params": {},
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "save", "arguments": json.dumps({"text": PAGE})}}


def post(address, headers=None, **more):
    body = RECORDED | {"input_type": "request"} | more
    status, _, raw = fake_upstream.post(address, "/beta/litellm_basic_guardrail_api", body, headers)
    told = json.loads(raw)
    if status != 200:
        return told["error"]["message"]
    assert told.pop("stream_holdback_chars") == 0
    return told


def said(action, reason=None, texts=None):
    return {"action": action, "blocked_reason": reason, "texts": texts}


@pytest.fixture
def address(start):
    return start()


def test_recorded_requests_pass_and_block(address):
    # catches: an action of another name, texts that are not looked at
    assert post(address, texts=["Hello, who are you?"]) == said("NONE")
    assert post(address, texts=[PAGE, SUM]) == said("NONE")
    assert post(address, texts=[FREE, COPY]) == said("NONE")
    assert post(address, texts=[f"{COPY}\n{PAGE}"]) == said("BLOCKED", WHY)


def test_a_question_about_a_page_is_put_in_another_way(address):
    # catches: texts of another number, which LiteLLM answers with an error; the page in place of the question
    told = post(address, texts=["You are helpful.", PAGE, COPY, "Sure."], structured_messages=[
        {"role": "system", "content": "You are helpful."},
        {"role": "user", "content": [{"type": "text", "text": PAGE}, {"type": "text", "text": COPY}]},
        {"role": "assistant", "content": "Sure."},
    ])  # fmt: skip
    assert told["action"] == "GUARDRAIL_INTERVENED"
    assert (told["texts"][:2], told["texts"][3:]) == (["You are helpful.", PAGE], ["Sure."])
    assert told["texts"][2].startswith("The page above must not be copied")


@pytest.mark.parametrize("given", [
    {"images": ["data:image/png;base64,AAAA"], "texts": [f"{COPY} It is in the picture."]},
    {"images": ["AAAA"], "texts": [COPY]},
    {"tool_calls": [CALL], "texts": [COPY]},
    {"tools": [{"type": "function", "function": {"name": "x", "description": PAGE}}], "texts": [COPY]},
    {"structured_messages": [{"role": "tool", "content": PAGE}, {"role": "user", "content": COPY}], "texts": [COPY]},
])  # fmt: skip
def test_a_page_is_seen_in_every_field(address, given):
    assert post(address, **given)["action"] == "GUARDRAIL_INTERVENED"


def test_what_cannot_be_read_is_blocked(address):
    told = post(address, images=["https://example.org/a.png"], texts=[SUM])
    todo = "load the picture yourself, and send it as a data: URL"
    assert told == said("BLOCKED", f"a picture at a https: address: {todo}")


def test_answers_that_copy_are_blocked(address):
    # catches: the first choice alone, arguments of tool calls, escapes in them
    assert post(address, input_type="response", texts=[FREE, LET]) == said("NONE")
    assert post(address, input_type="response", texts=[FREE, FREE, PAGE]) == said("BLOCKED", STOPPED)
    assert post(address, input_type="response", tool_calls=[CALL]) == said("BLOCKED", STOPPED)
    hidden = "".join(f"\\u{ord(one):04x}" for one in PAGE)
    call = CALL | {"function": {"name": "save", "arguments": f'{{"text": "{hidden}"}}'}}
    assert post(address, input_type="response", tool_calls=[call]) == said("BLOCKED", STOPPED)


@pytest.mark.parametrize(("given", "message"), [
    ({"input_type": "both"}, "an input_type that is neither request nor response; send one of them"),
    ({"texts": [1]}, "texts, images, tool_calls or structured_messages that are no lists; send lists"),
    ({"tool_calls": "x"}, "texts, images, tool_calls or structured_messages that are no lists; send lists"),
])  # fmt: skip
def test_what_it_does_not_send_is_refused(address, given, message):
    assert post(address, **given) == message


def test_its_key_is_that_of_a_tenant(start):
    # catches: a header that LiteLLM's api_key does not go to
    owner = Policy(tenant="press")
    address = start(Policy(tenants={sha256(b"mine").hexdigest(): owner}, unknown_key="refuse"))
    assert post(address, {"x-api-key": "mine"}, texts=[PAGE, COPY]) == said("NONE")
    assert post(address, {"x-api-key": "other"}, texts=[PAGE, COPY]) == "a key that no tenant has"
