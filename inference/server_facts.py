"""Facts that a server states about itself: the context of a model, and llama.cpp's slots."""

from dataclasses import dataclass

from inference.client import Client
from inference.completions import CallFailed
from inference.server_habits import MIN_CONTEXT
from utils.errors import UserError


@dataclass(frozen=True)
class ServerFacts:
    """`context_tokens` of one request, prompt and reply together; None if the server does not say. `slots` are the
    requests that a llama.cpp server computes at once, each with its own prompt cache; 0 for other servers."""

    context_tokens: int | None = None
    slots: int = 0


async def read_facts(client: Client) -> ServerFacts:
    """The facts of the client's model, from /models (vLLM and others) and /props (llama.cpp)."""
    if client.is_openai:
        return ServerFacts()
    listed = (await client.get("/models")).get("data")
    models = [model for model in listed if isinstance(model, dict)] if isinstance(listed, list) else []
    if not any(model.get("owned_by") == "llamacpp" for model in models):
        lengths = [model.get("max_model_len") for model in models if model.get("id") == client.model]
        return ServerFacts(next(filter(None, map(context_of, lengths)), None))
    properties = await client.get("/props", of_root=True)
    settings = properties.get("default_generation_settings")
    context = settings.get("n_ctx") if isinstance(settings, dict) else None
    slots = properties.get("total_slots")
    return ServerFacts(context_of(context), slots if isinstance(slots, int) and slots > 0 else 0)


def context_of(value: object) -> int | None:
    """A context that a server states; None for what is none, such as -1 for an unknown or unlimited one."""
    return value if isinstance(value, int) and value >= MIN_CONTEXT else None


async def count_tokens(client: Client, text: str) -> int | None:
    """Tokens of a message with the prompt template of a llama.cpp server; None if it does not count them (before
    2026)."""
    body = {"model": client.model, "messages": [{"role": "user", "content": text}]}
    try:
        tokens = await client.post("/chat/completions/input_tokens", body, lambda reply: reply.get("input_tokens"))
    except (CallFailed, UserError):
        return None
    return tokens if isinstance(tokens, int) else None
