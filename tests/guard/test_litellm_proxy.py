"""LiteLLM's own proxy, unchanged, in a virtual environment of its own, asks the guard about requests and answers.

Its packages do not fit ours: it is installed here as pip is configured on this machine, and left out where that fails.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import closing, contextmanager
from hashlib import sha256

import openai
import pytest

from fake_upstream import COPY, FREE, LET, PAGE, SUM, Upstream, running
from upright.guard.decisions import Guard
from upright.guard.policy import Policy
from upright.guard.registry import Registry
from upright.guard.rights import Work
from upright.guard.server import make_app

MINUTES = 5
WHY = "This is a registered work (The Bell): to copy it is not permitted here. A summary or answers about it are."
STOPPED = "Stopped here: more would copy a protected work. I can summarise it, or answer questions about it."
KEYS = {sha256(b"gateway").hexdigest(): Policy(tenant="gateway")}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


@pytest.fixture
def program(tmp_path):
    """Install LiteLLM's proxy and yield its path."""
    folder, end = tmp_path / "environment", time.monotonic() + 60 * MINUTES
    python = str(folder / "bin" / "python")
    try:
        for command in (
            [sys.executable, "-m", "venv", str(folder)],
            [
                python,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-compile",
                "--disable-pip-version-check",
                "litellm[proxy]",
            ],
        ):
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=end - time.monotonic())
        yield folder / "bin" / "litellm"
    except subprocess.TimeoutExpired:
        pytest.skip(f"litellm[proxy] was not installed within {MINUTES} minutes")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"litellm[proxy] cannot be installed: {error.stderr.strip()[-300:]}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # most of a gigabyte


def config(upstream, guard):
    model = {"model": "openai/fake", "api_base": f"{upstream}/v1", "api_key": "none"}
    rail = {
        **{"guardrail": "generic_guardrail_api", "mode": ["pre_call", "post_call"], "default_on": True},
        **{"api_base": guard, "api_key": "gateway", "streaming_sampling_rate": 1},
    }
    return {
        "model_list": [{"model_name": "fake", "litellm_params": model}],
        "guardrails": [{"guardrail_name": "copyguard", "litellm_params": rail}],
        "general_settings": {"master_key": "sk-reader"},
    }


@contextmanager
def proxy(program, folder, told):
    """Run the proxy on a free port, and yield its address."""
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    (folder / "config.yaml").write_text(json.dumps(told))  # JSON is YAML
    command = [str(program), "--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port)]
    own = {"PATH": os.defpath, "HOME": str(folder), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    address = f"http://127.0.0.1:{port}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=own, stdout=log, stderr=subprocess.STDOUT)
        try:
            for _ in range(600):
                assert process.poll() is None, (folder / "log").read_text()[-3000:]
                try:
                    urllib.request.urlopen(f"{address}/health/liveliness", timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.2)
            yield address
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def client(program, tmp_path):
    """Start upstream, guard and proxy, and yield a client of the proxy; `client.upstream` is what is behind it."""
    upstream = Upstream()
    with closing(Registry(tmp_path / "registry.sqlite")) as registry:
        registry.add(Work(0, "The Bell", declared="protected"), PAGE)
        guard = Guard(registry, Policy(tenants=KEYS, unknown_key="refuse"), eyes=lambda url: PAGE)
        with (
            running(upstream.app) as to,
            running(make_app(guard, "http://127.0.0.1:9")) as rail,
            proxy(program, tmp_path, config(to, rail)) as address,
            openai.OpenAI(base_url=f"{address}/v1", api_key="sk-reader", max_retries=0) as made,
        ):
            made.upstream = upstream
            yield made


def ask(client, *parts, **more):
    parts = [{"type": "text", "text": one} if isinstance(one, str) else one for one in parts]
    return client.chat.completions.create(model="fake", messages=[{"role": "user", "content": parts}], **more)


def blocked(call, *given, **more):
    with pytest.raises(openai.BadRequestError) as error:
        call(*given, **more)
    return error.value.body["message"]


@pytest.mark.slow
def test_its_proxy_blocks_requests_and_answers_that_copy_and_passes_the_others(client):
    """One test, so that workers that share the tests among them do not each install."""
    upstream, complete, respond = client.upstream, client.completions.create, client.responses.create
    copies = f"{COPY}\n{PAGE}"

    # catches: a guardrail that is never asked, an answer of it that LiteLLM takes for none
    assert blocked(ask, client, copies) == WHY
    assert blocked(complete, model="fake", prompt=copies) == WHY
    assert blocked(respond, model="fake", input=copies) == WHY
    assert upstream.seen == []

    # catches: a key that does not reach the guard, a guard that blocks whatever names the work
    for parts in ([PAGE, SUM], ["Hello."], [FREE, COPY]):
        told = ask(client, *parts).choices[0]
        assert (told.message.content, told.finish_reason) == (FREE, "stop")
        assert [one["text"] for one in upstream.seen.pop()["messages"][0]["content"]] == parts

    # catches: texts that LiteLLM puts back in other places, a picture that it does not show
    for page in ({"type": "text", "text": PAGE}, PICTURE):
        assert ask(client, page, COPY).choices[0].message.content == FREE
        first, last = upstream.seen.pop()["messages"][0]["content"]
        assert first == page
        assert last["text"].startswith("The page above must not be copied")

    # catches: an answer that nobody looks at, choice 0 alone
    upstream.says(PAGE)
    assert blocked(ask, client, "Hello.") == STOPPED
    assert blocked(complete, model="fake", prompt="Hello.") == STOPPED
    upstream.says(FREE, PAGE)
    assert blocked(ask, client, "Hello.", n=2) == STOPPED
    assert len(upstream.seen) == 3  # the model has said it

    # catches: pieces of a stream that leave before they are judged
    upstream.says(FREE)
    assert streamed(client) == (FREE, "")
    upstream.says(PAGE)
    text, why = streamed(client)
    assert (LET.startswith(text), len(text) > 100, why) == (True, True, STOPPED)


def streamed(client):
    """Return what of an answer comes, and why it ends."""
    text = ""
    try:
        for one in ask(client, "Hello.", stream=True):
            text += "".join(choice.delta.content or "" for choice in one.choices)
    except openai.APIError as error:
        return text, error.message
    return text, ""
