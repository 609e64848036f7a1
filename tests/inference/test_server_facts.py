"""Context and slots that servers state, and servers that state nothing."""

import asyncio

import pytest

from inference.client import Client
from inference.server_facts import ServerFacts, count_tokens, read_facts


def facts(server) -> ServerFacts:
    async def ask() -> ServerFacts:
        client = Client("fake", server.url)
        try:
            return await read_facts(client)
        finally:
            await client.close()

    return asyncio.run(ask())


@pytest.mark.parametrize("listed", [[], {"data": None}, {"data": ["x", {"owned_by": "x"}]}, "no"])
def test_servers_that_say_nothing(home, server, listed):
    server.slots, server.listed = 2, listed
    assert facts(server) == ServerFacts()


def test_vllm_lists_the_context(home, server):
    server.max_model_len = 8192
    assert facts(server) == ServerFacts(context_tokens=8192)
    server.listed = {"data": [{"id": "fake", "max_model_len": None}, {"id": "other", "max_model_len": 4096}]}
    assert facts(server) == ServerFacts()


def test_llama_cpp_lists_slots_and_the_context_of_one(home, server):
    server.slots, server.slot_context = 2, 4096
    assert facts(server) == ServerFacts(context_tokens=4096, slots=2)
    server.slot_context = None
    assert facts(server) == ServerFacts(slots=2)


def test_a_server_that_cannot_be_reached(home):
    class Gone:
        url = "http://127.0.0.1:9/v1"

    assert facts(Gone) == ServerFacts()


@pytest.mark.parametrize(("slots", "tokens"), [(1, 100), (0, None)])
def test_llama_cpp_counts_tokens(home, server, slots, tokens):
    async def ask() -> int | None:
        client = Client("fake", server.url)
        try:
            return await count_tokens(client, "word" * 100)
        finally:
            await client.close()

    server.slots = slots
    assert asyncio.run(ask()) == tokens
