"""The `openai` package, unchanged, through the guard."""

from __future__ import annotations

import base64
from shutil import which

import openai
import pytest

from fake_upstream import COPY, FREE, LET, PAGE, SUM, pieces, sse
from upright.guard.decisions import STOPPED
from upright.guard.pages import draw_page, encode_page
from upright.guard.reading import Reader

PICTURE = f"data:image/png;base64,{base64.b64encode(encode_page(draw_page(PAGE))).decode()}"


def asked(query, *pages):
    return [{"role": "user", "content": [{"type": "text", "text": one} for one in (*pages, query)]}]


def shown(query):
    picture = {"type": "image_url", "image_url": {"url": PICTURE}}
    return [{"role": "user", "content": [picture, {"type": "text", "text": query}]}]


@pytest.fixture
def client(start):
    with openai.OpenAI(base_url=f"{start()}/v1", api_key="a key", max_retries=0) as made:
        yield made


def test_a_chat_goes_through_unchanged(client, upstream):
    # catches: a request that the guard rewrites, a key that does not reach the upstream
    messages = asked("Say something about ferries.")
    told = client.chat.completions.create(model="fake", messages=messages, temperature=0.5)
    assert (told.choices[0].message.content, told.choices[0].finish_reason) == (FREE, "stop")
    assert upstream.seen == [{"model": "fake", "messages": messages, "temperature": 0.5}]
    assert upstream.headers[0]["authorization"] == "Bearer a key"
    assert [one.id for one in client.models.list()] == ["fake"]


def test_a_chat_that_copies_is_stopped_with_a_content_filter(client, upstream):
    upstream.says(PAGE)
    told = client.chat.completions.create(model="fake", messages=asked("Tell a story."))
    assert (told.choices[0].message.content, told.choices[0].finish_reason) == (LET + STOPPED, "content_filter")
    found = list(client.chat.completions.create(model="fake", messages=asked("Tell a story."), stream=True))
    assert "".join(one.choices[0].delta.content or "" for one in found) == LET + STOPPED
    assert [one.choices[0].finish_reason for one in found][-1] == "content_filter"


@pytest.mark.parametrize("query", [COPY, SUM])
def test_a_picture_is_read_and_what_is_asked_of_it_decides(client, upstream, query):
    # catches: a picture that is passed by, a question that does not reach the model with its page
    raw = client.chat.completions.with_raw_response.create(model="fake", messages=shown(query))
    assert raw.parse().choices[0].message.content == FREE
    sent = upstream.seen[0]["messages"][0]["content"]
    assert sent[0]["image_url"]["url"] == PICTURE
    copies = query == COPY
    assert raw.headers["x-guard-decision"] == ("transform" if copies else "allow")
    assert raw.headers["x-guard-rule"] == ("protected/copy" if copies else "protected/summary")
    assert raw.headers["x-guard-work"] == "0"
    assert (sent[1]["text"] == query) is not copies


@pytest.mark.skipif(which("tesseract") is None, reason="the tesseract program is not installed")
def test_a_picture_is_read_by_an_engine(start, upstream):
    with Reader() as reader, openai.OpenAI(base_url=f"{start(eyes=None, reader=reader)}/v1", api_key="k") as client:
        raw = client.chat.completions.with_raw_response.create(model="fake", messages=shown(COPY))
        assert (raw.headers["x-guard-decision"], raw.headers["x-guard-work"]) == ("transform", "0")


def test_calls_of_tools_and_what_was_used_come_through_whole(client, upstream):
    # catches: a field that a client needs, left out with those that nobody knows; a choice without a number
    arguments = '{"where": "Caf\\u00e9 \\"Mill\\"", "n": 3}'
    call = {"id": "call_1", "type": "function", "function": {"name": "save", "arguments": arguments}}
    usage = {
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 1},
    }
    head = {"id": "chatcmpl-1", "created": 1, "model": "fake", "system_fingerprint": "fp", "usage": usage}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    upstream.body = head | {"object": "chat.completion", "choices": [choice]}
    told = client.chat.completions.create(model="fake", messages=asked("Save it."))
    assert told.to_dict() == upstream.body | {"choices": [choice | {"logprobs": None}]}
    deltas = [{"tool_calls": [call | {"index": 0, "function": {"name": "save", "arguments": ""}}]}]
    deltas += [{"tool_calls": [{"index": 0, "function": {"arguments": one}}]} for one in pieces(arguments, 3)]
    chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "fake"}
    events = [chunk | {"choices": [{"delta": one}]} for one in deltas]
    end = [chunk | {"choices": [{"delta": {}, "finish_reason": "tool_calls"}]}, chunk | {"choices": [], "usage": usage}]
    upstream.chunks = sse(events + end)
    with client.chat.completions.stream(model="fake", messages=asked("Save it.")) as found:
        told = found.get_final_completion()
    assert (told.choices[0].finish_reason, told.usage.total_tokens) == ("tool_calls", 7)
    assert told.choices[0].message.tool_calls[0].function.arguments == arguments


def test_responses_and_completions_are_stopped_too(client, upstream):
    upstream.says(PAGE)
    told = client.completions.create(model="fake", prompt="Tell a story.")
    assert (told.choices[0].text, told.choices[0].finish_reason) == (LET + STOPPED, "content_filter")
    found = list(client.completions.create(model="fake", prompt="Tell a story.", stream=True))
    assert "".join(one.choices[0].text for one in found) == LET + STOPPED
    part = {"type": "output_text", "text": PAGE, "annotations": []}
    item = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [part]}
    upstream.body = {"id": "resp_1", "object": "response", "status": "completed", "output": [item]}
    answer = client.responses.create(model="fake", input="Tell a story.")
    assert (answer.output_text, answer.status) == (LET + STOPPED, "incomplete")
    assert answer.incomplete_details.reason == "content_filter"


@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_is_an_answer_of_every_kind(client, upstream, stream):
    # catches: a refusal that a client cannot parse, or that was paid for upstream
    why = "This is a registered work (The Bell): to copy it is not permitted here. A summary or answers about it are."
    text = f"{COPY}\n\n{PAGE}"  # nothing would be left to tell about
    chat = client.chat.completions.create(model="fake", messages=asked(text), stream=stream)
    done = client.completions.create(model="fake", prompt=text, stream=stream)
    told = client.responses.create(model="fake", input=text, stream=stream)
    if stream:
        chat, done, told = list(chat), list(done), list(told)
        assert "".join(one.choices[0].delta.content for one in chat) == why
        assert "".join(one.choices[0].text for one in done) == why
        assert {chat[-1].choices[0].finish_reason, done[-1].choices[0].finish_reason} == {"content_filter"}
        assert "".join(one.delta for one in told if one.type == "response.output_text.delta") == why
        told = told[-1].response
    else:
        assert (chat.choices[0].message.content, chat.choices[0].finish_reason) == (why, "content_filter")
        assert (done.choices[0].text, done.choices[0].finish_reason) == (why, "content_filter")
    assert (told.output_text, told.status, told.incomplete_details.reason) == (why, "incomplete", "content_filter")
    assert upstream.seen == []


def test_errors_are_those_that_the_package_knows(client, upstream):
    upstream.status, upstream.body = 404, {"error": {"message": f"no such model {PAGE}"}}
    with pytest.raises(openai.NotFoundError) as error:
        client.chat.completions.create(model="none", messages=asked("Hello."))
    assert error.value.body["message"] == f"the upstream answered 404: no such model {LET}"
    upstream.status, upstream.body = 500, b"a traceback"
    with pytest.raises(openai.InternalServerError) as error:
        client.chat.completions.create(model="none", messages=asked("Hello."))
    assert (error.value.status_code, error.value.body["message"]) == (502, "the upstream answered 500")
