"""Request fields that servers refuse, and prompts that they cut, by what the servers themselves say."""

import asyncio
import json

import pytest

from inference import client as client_module
from inference.client import Client
from inference.completions import CallFailed, PromptCut
from inference.server_habits import Fields, least_tokens, refused_field
from utils.errors import UserError

BODY = {
    "model": "m",
    "messages": [],
    "max_tokens": 5,
    "temperature": 0.1,
    "top_p": 0.9,
    "seed": 1,
    "n": 2,
    "stop": ["x"],
} | {"response_format": {"type": "json_object"}, "prompt_cache_key": "u"}
REFUSALS = {
    "max_tokens": [
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
        "max_tokens is deprecated, please use max_completion_tokens",
    ],
    "temperature": [
        "Unsupported value: 'temperature' does not support 0.1 with this model. Only the default (1) value is supported.",
        "temperature is not supported by this model",
    ],
    "top_p": ["`temperature` and `top_p` cannot both be specified for this model. Please use only one."],
    "seed": ["Unrecognized request argument supplied: seed", "property 'seed' is unsupported"],
    "n": ["'n' : number must be at most 1 with this model", "Only one completion choice is allowed"],
    "stop": ["Unsupported parameter: 'stop' is not supported with this model."],
    "response_format": ["'response_format.type' must be 'json_schema' or 'text'"],
    "prompt_cache_key": ["Extra inputs are not permitted: prompt_cache_key"],
}
OTHER_ERRORS = [
    "max_tokens is too large: 100000. This model supports at most 4096 completion tokens, whereas you provided 100000.",
    "'max_tokens' or 'max_completion_tokens' is too large: 5. This model's maximum context length is 4 tokens.",
    "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens.",
    "temperature must be between 0 and 1",
    "The model `m` does not exist",
    "We could not parse the JSON body of your request.",
    "You cannot stop the seed of doubt at this temperature: not allowed by the content policy",
]


@pytest.mark.parametrize(("field", "message"), [(name, text) for name, texts in REFUSALS.items() for text in texts])
def test_refused_field_by_the_servers_message(field, message):
    refused = refused_field(400, json.dumps({"error": {"message": message}}).encode(), BODY)
    assert refused.field == field


def test_refused_field_in_other_forms_of_error():
    detail = {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]}
    assert refused_field(422, json.dumps(detail).encode(), BODY).field == "seed"
    error = {"error": {"message": "Unsupported parameter.", "param": "temperature", "code": "unsupported_parameter"}}
    assert refused_field(400, json.dumps(error).encode(), BODY).field == "temperature"


@pytest.mark.parametrize("message", OTHER_ERRORS)
def test_other_errors_change_no_request(message):
    assert refused_field(400, json.dumps({"error": {"message": message}}).encode(), BODY) is None
    assert refused_field(500, b"temperature is not supported", BODY) is None


def test_fields_are_renamed_or_omitted_once():
    fields = Fields()
    assert "sent as `max_completion_tokens`" in fields.change("max_tokens", "why")
    assert "server's own temperature" in fields.change("temperature", "why")
    assert fields.adapt({"max_tokens": 5, "temperature": 0, "seed": 1}) == {"max_completion_tokens": 5, "seed": 1}
    with pytest.raises(CallFailed):
        fields.change("max_completion_tokens", "not that either")


@pytest.fixture
def client(home, server, monkeypatch):
    monkeypatch.setattr(client_module, "FIRST_DELAY_S", 0.01)
    return Client("m", server.url)


def run(client, *work):
    """Results of `work`, one after another, or its last exception."""

    async def main():
        try:
            return [await item for item in work]
        finally:
            await client.close()

    return asyncio.run(main())


def test_refused_fields_cost_no_attempt_and_one_line(client, server, capsys):
    server.habits.refuses = ("max_tokens", "temperature", "seed")
    replies = run(client, *(client.chat("# Task\n- x", max_tokens=9, temperature=0.0, seed=n) for n in range(3)))
    assert [reply.text for reply in replies] == ["About x"] * 3
    assert (server.requests, sum(server.billed.values()), client.retries) == (6, 3, 0)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3
    assert "`max_tokens`" in said[0]
    assert server.bodies[-1]["max_completion_tokens"] == 9


def test_concurrent_calls_say_it_once(client, server, capsys):
    server.habits.refuses, server.latency = ("max_tokens",), 0.05

    async def many():
        return await asyncio.gather(*(client.chat(f"# Task\n- {n}", max_tokens=9) for n in range(8)))

    run(client, many())
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert sum(server.billed.values()) == 8


LEDGER = "".join(  # cases/ledger.txt
    f"The keeper of the north lamp wrote in her ledger that night {n} that the boats of the eastern villages were "
    "late.\n\n"
    for n in range(400)
)
ARTICLE = "".join(f"On day {n} Ada walked to the harbour and counted {n * 7} gulls. " for n in range(500))
CHINESE = "".join(f"第{n}天，灯塔的看守人在账簿里写道，东边村庄的船来晚了。" for n in range(400))


@pytest.mark.parametrize(
    ("prompt", "context"), [(LEDGER, 2048), (LEDGER, 4096), (ARTICLE, 4096), (CHINESE, 1024), (LEDGER[:9000], 300)]
)
def test_cut_prompts_are_named_failures(client, server, prompt, context):
    server.habits.context = context
    server.habits.count = lambda text: 2 * least_tokens(text)
    with pytest.raises(PromptCut, match=f"its context is {context:,} tokens") as caught:
        run(client, client.chat(prompt, max_tokens=9))
    assert caught.value.reply.usage["prompt_tokens"] == context  # the bill is known
    assert server.billed[prompt] == 1
    with pytest.raises(PromptCut):
        run(other := Client("m", server.url), other.complete(prompt, 2))
    assert server.billed[prompt] == 2


def joins_words(text: str) -> int:
    """A tokenizer of phrases, such as SuperBPE's: up to three words a token."""
    return -(-len(text.split()) // 3)


HONEST = {
    "English": (ARTICLE, lambda text: len(text) // 4),
    "one word again and again": ("lamp " * 20_000, lambda text: len(text.split())),
    "a phrase again and again": ("by the way " * 9_000, joins_words),
    "phrases": (LEDGER, joins_words),
    "white space": (" " * 90_000 + "x\n" * 200, lambda text: 2000),
    "a table of dashes": (("|" + "-" * 200 + "|\n") * 400, lambda text: len(text) // 64),
    "one long word": ("a" * 60_000, lambda text: len(text) // 64),
    "Chinese": (CHINESE, lambda text: len(text) * 2 // 3),
    "Thai": ("ผู้ดูแลประภาคารเขียนลงในสมุดบัญชี" * 300, lambda text: len(text) // 4),
    "German": ("Donaudampfschifffahrtsgesellschaftskapitän " * 900, lambda text: len(text.split()) * 9),
}


@pytest.mark.parametrize("name", HONEST)
def test_honest_tokenizers_are_never_accused(client, server, name):
    prompt, server.habits.count = HONEST[name]
    run(client, client.chat(prompt, max_tokens=9), client.complete(prompt, 2), client.chat(prompt + "x", max_tokens=9))
    assert server.billed[prompt] == 3


@pytest.mark.parametrize("hides", [True, False])
def test_servers_with_a_cache_are_never_accused(client, server, hides):
    server.caches, server.habits.hides_cache = True, hides
    prompts = [f"{ARTICLE}{LEDGER}\nQuestion {n}: {'why ' * 90}" for n in range(5)]
    run(client, *(client.chat(prompt, max_tokens=9) for prompt in prompts))
    assert [server.billed[prompt] for prompt in prompts] == [1] * 5


@pytest.mark.parametrize("fault", ["no_usage", "odd_usage"])
def test_servers_that_count_nothing_are_never_accused(client, server, fault):
    server.faults = [fault]
    run(client, client.chat(LEDGER, max_tokens=9))
    assert server.requests == 1


def test_a_server_that_cuts_everything_is_named(client, server):
    server.habits.context = 2048

    async def ask(number):
        with pytest.raises(PromptCut):
            await client.chat(LEDGER + str(number), max_tokens=9)

    async def check():
        client.check_context()

    run(client, ask(0), ask(1), check(), ask(2))  # two may be an accident
    with pytest.raises(UserError, match="cut all 3 prompts so far to its context of 2,048 tokens"):
        client.check_context()
