import asyncio
import time

import pytest

from inference import client as client_module
from inference.client import MAX_ATTEMPTS, TEMPLATE_TOKENS, Client
from inference.completions import CallFailed, CallStopped
from inference.keys import find_key
from inference.parallel import for_each
from utils.errors import UserError

KEY = "sk-secret-123"


@pytest.fixture
def client(home, server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(client_module, "FIRST_DELAY_S", 0.01)
    return Client("m", server.url)


def run(client, work):
    """Result of `work`, in an event loop that also closes the client's connections."""

    async def main():
        try:
            return await work
        finally:
            await client.close()

    return asyncio.run(main())


def test_reply_and_its_bill(client, server):
    reply = run(client, client.chat("hello # Task\n- x", max_tokens=9, temperature=1.0))
    assert reply.text == "About x"
    assert (reply.finish_reason, reply.usage) == (
        "stop",
        {"prompt_tokens": len("hello # Task\n- x") // 4, "completion_tokens": 10},
    )
    assert server.bodies[0]["temperature"] == 1.0
    assert server.keys == {KEY}


@pytest.mark.parametrize("fault", [429, 500, 503, "torn", "bad_json", "no_choices"])
def test_transient_faults_are_retried(client, server, fault):
    server.faults = [fault, fault]
    assert run(client, client.chat("hello # Task\n- x", max_tokens=9)).text == "About x"
    assert client.retries == 2


@pytest.mark.parametrize("odd", ["null_choice", "text_message", "list_content", "an_error"])
def test_malformed_replies_are_requested_again(client, server, odd):
    server.faults = [odd]
    assert run(client, client.chat("hello # Task\n- x", max_tokens=9)).text == "About x"
    assert client.retries == 1


@pytest.mark.parametrize("odd", ["no_usage", "odd_usage"])
def test_missing_usage_counts_as_the_upper_bound(client, server, odd):
    server.faults = [odd]
    reply = run(client, client.chat("hello # Task\n- x", max_tokens=9))
    assert (reply.text, reply.usage) == ("About x", {})
    assert client.ledger.tokens() == len("hello # Task\n- x") + TEMPLATE_TOKENS + 9


def test_half_a_surrogate_pair_and_no_finish_reason(client, server):
    server.faults = ["surrogate", "no_reason"]

    async def both():
        return [await client.chat("hello", max_tokens=9) for _ in range(2)]

    half, other = run(client, both())
    assert half.text == "half ? of it"
    assert (other.text, other.finish_reason) == ("Some text.", "stop")


def test_stopping_releases_waiting_calls(client, server):
    async def main():
        client.rate_limiter.pause(3600)
        waiting = asyncio.create_task(client.chat("hello", max_tokens=9))
        await asyncio.sleep(0.05)
        client.stop()
        with pytest.raises(CallStopped):
            await asyncio.wait_for(waiting, 1)

    run(client, main())
    assert server.requests == 0


def test_retries_are_bounded(client, server):
    server.faults = [500] * 100
    with pytest.raises(CallFailed, match="500") as caught:
        run(client, client.chat("hello", max_tokens=9))
    assert server.requests == MAX_ATTEMPTS
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_refusal_is_not_retried_and_shows_no_key(client, server, status):
    server.faults = [status] * 10
    with pytest.raises(UserError, match=str(status)) as caught:
        run(client, client.chat("hello", max_tokens=9))
    assert server.requests == 1
    assert KEY not in str(caught.value)


def test_bad_request_fails_alone(client, server):
    server.faults = [400]
    with pytest.raises(CallFailed, match="400"):
        run(client, client.chat("hello", max_tokens=9))
    assert server.requests == 1


def test_missing_choices_are_requested_again(client, server):
    assert run(client, client.complete("p", 3)) == [server.answer] * 3
    assert server.requests == 3


def test_for_each_is_bounded_and_in_order(client):
    running, max_running, begun = 0, 0, []

    async def work(item):
        nonlocal running, max_running
        begun.append(item)
        running += 1
        max_running = max(max_running, running)
        await asyncio.sleep(0.001)
        running -= 1

    asyncio.run(for_each(range(50), work, 7))
    assert max_running == 7
    assert begun == list(range(50))


def test_keys(home, monkeypatch):
    with pytest.raises(UserError, match=r"OPENAI_API_KEY.*openai\.key"):
        find_key(None)
    assert find_key("http://127.0.0.1:1/v1") == "none"
    (home / "data/dataset").mkdir(parents=True)
    (home / "data/dataset/openai.key").write_text("from-file\n")
    assert find_key(None) == "from-file"
    monkeypatch.setenv("OPENAI_API_KEY", "from-environment")
    assert find_key(None) == "from-environment"
    monkeypatch.setenv("OPENAI_API_KEY", "two words")
    with pytest.raises(UserError):
        find_key(None)


def test_a_server_that_is_not_there_is_said_within_two_seconds():
    async def ask(client):
        try:
            await client.complete("Question?", 1, temperature=0.0, max_tokens=5)
        finally:
            await client.close()

    begun = time.monotonic()
    with pytest.raises(UserError, match=r"^cannot reach http://127.0.0.1:9/v1 \(.*refused\); start the server$"):
        asyncio.run(ask(Client("m", "http://127.0.0.1:9/v1")))
    assert time.monotonic() - begun < 2.5
    with pytest.raises(UserError, match=r"^cannot reach http://no.such.host.invalid/v1"):
        asyncio.run(ask(Client("m", "http://no.such.host.invalid/v1")))
