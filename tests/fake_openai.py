"""Fake OpenAI-compatible server for tests and benchmarks: exact bills, rate limits and injected faults.

    python tests/fake_openai.py --port 8001 --latency 1 --requests_per_minute 600 --fault_share 0.1

Serves chat completions (also streaming), completions, models, embeddings, reranking, files and batches on a loopback
port. It bills as a real server does: every reply it generated, whether or not the client still read it; HTTP errors
are free, and so are streams, which are for the tests of chat. `GET /count` returns the bill as JSON.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import random
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))
from tests.fake_habits import Habits, uploaded  # noqa: E402

ENTITIES = ["Ada", "Bell", "Clock", "Door", "Egg", "Fog"]
# Each was seen from a real server or a proxy before it. All but the HTTP errors are billed.
FAULTS = ("burst", 500, "hang", "torn", "bad_json", "no_entities", "length")
# Malformed replies in valid JSON, each seen from some server or proxy.
MALFORMED = {
    "null_choice": {"choices": [None]},
    "text_message": {"choices": [{"message": "x"}]},
    "list_content": {"choices": [{"message": {"content": [{"text": "x"}]}, "finish_reason": "stop"}]},
    "an_error": {"choices": None, "error": {"message": "busy"}},
    "no_usage": {"usage": None},
    "odd_usage": {"usage": "n/a"},
    "surrogate": {"choices": [{"message": {"content": "half \ud83d of it"}, "finish_reason": "stop"}]},
    "no_reason": {"choices": [{"message": {"content": "Some text."}}]},
}
UNUSABLE = ("hang", "torn", "bad_json", "no_entities", "no_choices")
BURST_S = 0.05  # duration of a "burst", which refuses every call
CHARS_PER_TOKEN = 4  # of cached prefixes
MIN_CACHED_TOKENS, CACHE_STEP_TOKENS = 1024, 128


@dataclass
class FakeOpenAI:
    """`faults` are used first, one per call: a status code, one of FAULTS or MALFORMED, `no_choices`,
    `content_filter`, `cut_list` or `insufficient_quota`; then a `fault_share` of the calls has one of FAULTS. Times are in s."""

    latency: float = 0.0
    tokens_per_s: float = 0.0  # of the completion, on top of the latency; 0: unlimited
    completion_tokens: int = 10
    entities: tuple[str, ...] = tuple(ENTITIES)
    requests_per_minute: float = 0.0  # 0: unlimited
    burst: float = 1.0  # calls that the rate limit accepts at once
    limit_headers: bool = True
    no_refusals: bool = False  # of FAULTS only those that are billed
    late_errors: bool = False  # 5xx after the latency, not immediately
    caches: bool = False
    fault_share: float = 0.0
    seed: int = 0
    keeps_bodies: bool = True
    answer: str = "Thought. Answer: B."  # to every /completions request
    replies: Callable[[str], str] | None = None  # chat reply to a prompt, instead of the default
    batch_delay: float = 0.0
    models: tuple[str, ...] = ("fake",)
    max_model_len: int | None = None  # listed for every model
    slots: int = 0  # of a server that lists its models as llama.cpp's does; 0: another server
    slot_context: int | None = None  # tokens, listed for llama.cpp's slots
    listed: object = None  # reply to /models, instead of the list
    max_bytes: int = 1 << 30  # of the messages of a stream; beyond it a 400 like vLLM's
    pieces: list[str] | None = None  # of every stream, instead of the default
    broken: bool = False  # every stream is a 500
    faults: list = field(default_factory=list)
    habits: Habits = field(default_factory=Habits)
    requests: int = 0
    refused: int = 0
    spoiled: int = 0  # replies that were billed and unusable
    in_flight: int = 0
    most_in_flight: int = 0
    first_at: float = 0.0
    last_at: float = 0.0
    tokens: Counter = field(default_factory=Counter)  # prompt, cached, completion
    batch_tokens: Counter = field(default_factory=Counter)
    billed: Counter = field(default_factory=Counter)  # replies by prompt
    keys: set = field(default_factory=set)
    bodies: list = field(default_factory=list)
    paths: list = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        self._level, self._level_at = self.burst, time.monotonic()
        self._burst_until = 0.0
        self._prefixes: set[bytes] = set()
        self._files: dict[str, bytes] = {}
        self._batches: dict[str, dict] = {}

    def __enter__(self) -> "FakeOpenAI":
        """Serve from a new thread, on a free port."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        starting = asyncio.run_coroutine_threadsafe(self.listen(0), self._loop)
        self.url = f"http://127.0.0.1:{starting.result()}/v1"
        return self

    def __exit__(self, *exception: object) -> None:
        asyncio.run_coroutine_threadsafe(self._hang_up(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def listen(self, port: int) -> int:
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", port, limit=1 << 28, backlog=2048)
        return self._server.sockets[0].getsockname()[1]

    async def _hang_up(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def count(self) -> dict:
        """Counts of requests and replies, and the bill."""
        return {
            "requests": self.requests,
            "refused": self.refused,
            "replies": sum(self.billed.values()),
            "distinct": len(self.billed),
            "spoiled": self.spoiled,
            "in_flight": self.in_flight,
            "most_in_flight": self.most_in_flight,
            "seconds": self.last_at - self.first_at,
            "tokens": dict(self.tokens),
            "batch_tokens": dict(self.batch_tokens),
        }

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve the requests of a connection until either side closes it."""
        try:
            while await self._exchange(reader, writer):
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:] if line)}
        content = await reader.readexactly(int(headers.get("content-length", 0)))
        path = path.split("?")[0].partition("/v1")[2] or path
        if path == "/count":
            return _send(writer, 200, self.count())
        if path == "/models":
            return _send(writer, 200, self._list_models())
        if path == "/chat/completions/input_tokens" and self.slots:
            return _send(writer, 200, {"input_tokens": self.habits.count(_prompt(json.loads(content)))})
        if path == "/props" and self.slots:
            settings = {"n_ctx": self.slot_context} if self.slot_context else {}
            return _send(writer, 200, {"total_slots": self.slots, "default_generation_settings": settings})
        if path.endswith(("completions", "embeddings", "rerank")) and self.habits.is_fixed(json.loads(content)):
            return self._identify(writer, json.loads(content))
        self.paths.append(path)
        if not path.endswith(("completions", "embeddings", "rerank")):
            found = self._files_and_batches(method, path, headers, content)
            error = {"error": {"message": "No such File object", "code": None}}
            return _send(writer, 404 if found is None else 200, error if found is None else found)
        self.requests += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self.first_at = self.first_at or time.monotonic()
        try:
            return await self._call(writer, json.loads(content), headers)
        finally:
            self.in_flight -= 1
            self.last_at = time.monotonic()

    def _identify(self, writer: asyncio.StreamWriter, body: dict) -> bool:
        """Answer the fixed request, outside of faults and counts."""
        if error := self.habits.refusal(body):
            return _send(writer, 400, {"error": error})
        before = [counter.copy() for counter in (self.billed, self.tokens)]
        answer, replies = self.habits.fixed_text(), self.replies
        self.replies, kept = (lambda _: answer), self.answer
        self.answer = answer
        reply = self._reply(body, None)
        self.answer, self.replies, self.billed, self.tokens = kept, replies, *before
        return _send(writer, 200, reply)

    async def _call(self, writer: asyncio.StreamWriter, body: dict, headers: dict) -> bool:
        key = headers.get("authorization", "").removeprefix("Bearer ")
        self.keys.add(key)
        if self.keeps_bodies:
            self.bodies.append(body | {"headers": headers})
        fault = self._next_fault()
        if fault == "burst":
            self._burst_until = time.monotonic() + BURST_S
        if time.monotonic() < self._burst_until:
            fault = 429
        if fault == "insufficient_quota":
            error = {"message": "You exceeded your current quota", "code": fault, "type": fault}
            return _send(writer, 429, {"error": error})
        if isinstance(fault, int):
            await asyncio.sleep(self.latency if self.late_errors and fault != 429 else 0)
            return self._refuse(writer, fault, f"fault {fault}, your key {key} was seen", 0.05)
        if wait := self._over_limit():
            return self._refuse(writer, 429, "Rate limit reached for requests", wait)
        if error := self.habits.refusal(body):
            return _send(writer, 400, {"error": error})
        if body.get("stream"):
            return await self._stream(writer, body, key)
        reply = self._reply(body, fault)
        seconds = self.latency
        if self.tokens_per_s:
            seconds += reply["usage"]["completion_tokens"] / self.tokens_per_s
        await asyncio.sleep(seconds)
        self._remember(_prompt(body))
        return await self._deliver(writer, reply, fault)

    def _next_fault(self) -> object:
        if self.faults:
            return self.faults.pop(0)
        if self.fault_share and self._rng.random() < self.fault_share:
            return self._rng.choice(FAULTS[2:] if self.no_refusals else FAULTS)
        return None

    def _list_models(self) -> object:
        if self.listed is not None:
            return self.listed
        extra = {"max_model_len": self.max_model_len} if self.max_model_len else {}
        head = {"object": "model", "created": 0, "owned_by": "llamacpp" if self.slots else "x"}
        models = [{"id": name} | head | extra for name in self.models]
        return {"object": "list", "data": models}

    async def _stream(self, writer: asyncio.StreamWriter, body: dict, key: str) -> bool:
        """Stream `turn N:` and the first 60 characters of the last message, N being the number of user messages.

        A word in that message can change the stream: with `slow` it has 400 words at intervals of 50 ms, with `die`
        the connection is cut after two words, with `unended` there is no finish_reason, and with `refuse` it is a 500.
        """
        messages = body.get("messages") or [{"role": "user", "content": body["prompt"]}]
        text = messages[-1]["content"]
        if sum(len(message["content"].encode()) for message in messages) > self.max_bytes:
            message = "This model's maximum context length is 100 tokens."
            return _send(writer, 400, {"error": {"message": message, "code": 400}})
        if "refuse" in text or self.broken:
            message = f"\x1b[31mbusy <img src=x onerror='window.hacked=3'>, Bearer {key}"
            return _send(writer, 500, {"error": {"message": message}})
        turn = sum(message["role"] == "user" for message in messages)
        words = [f"turn {turn}:", *text[:60].split()] if self.pieces is None else self.pieces
        if self.habits.reasoning:
            words = re.findall(r".{1,5}", self.habits.written(" ".join(words), body), re.S)
        if "slow" in text:
            words = [f"word{number}" for number in range(400)]
        writer.write(b"HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for number, word in enumerate(words):
            if "die" in text and number == 2:
                writer.transport.abort()
                return False
            piece = word if self.habits.reasoning else f"{word} "
            _send_event(writer, _stream_chunk(body, self.habits.content(piece) if "messages" in body else piece, None))
            await writer.drain()
            await asyncio.sleep(0.05 if "slow" in text else 0.001)
        if "unended" not in text:
            _send_event(writer, _stream_chunk(body, "", self.habits.finish_reason()))
        _send_event(writer, "[DONE]")
        writer.write(b"0\r\n\r\n")
        return True

    async def _deliver(self, writer: asyncio.StreamWriter, reply: dict, fault: object) -> bool:
        if fault == "hang":
            await asyncio.sleep(3600)
        if fault == "torn":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n" + b'{"id": "x", "choi')
            return False
        if fault in MALFORMED:
            return _send(writer, 200, reply | MALFORMED[fault])
        if fault == "bad_json":
            return _send(writer, 200, None, b"<html>busy</html>")
        return _send(writer, 200, reply, extra=self._limit_headers())

    def _refuse(self, writer: asyncio.StreamWriter, status: int, message: str, wait: float) -> bool:
        self.refused += status == 429
        code = {401: "invalid_api_key", 429: "rate_limit_exceeded", 400: "context_length_exceeded"}
        error = {"message": message, "code": code.get(status), "type": "x"}
        extra = self._limit_headers()
        if status == 429 and self.limit_headers:
            extra += f"retry-after: {wait:.3f}\r\n"
        return _send(writer, status, {"error": error}, extra=extra)

    def _over_limit(self) -> float:
        """Seconds until a call is accepted; 0 accepts this one."""
        if not self.requests_per_minute:
            return 0
        now, rate = time.monotonic(), self.requests_per_minute / 60
        self._level = min(self.burst, self._level + (now - self._level_at) * rate)
        self._level_at = now
        if self._level < 1:
            return (1 - self._level) / rate
        self._level -= 1
        return 0

    def _limit_headers(self) -> str:
        if not self.requests_per_minute or not self.limit_headers:
            return ""
        rate = self.requests_per_minute / 60
        return (
            f"x-ratelimit-limit-requests: {self.requests_per_minute:.0f}\r\n"
            f"x-ratelimit-remaining-requests: {int(self._level)}\r\n"
            f"x-ratelimit-reset-requests: {(self.burst - self._level) / rate * 1000:.0f}ms\r\n"
        )

    def _reply(self, body: dict, fault: object, batch: bool = False) -> dict:
        """Generate a reply and bill it."""
        prompt = _prompt(body)
        read, cached = self.habits.read(prompt), self._cached(prompt)
        usage = {
            "prompt_tokens": read - cached if self.habits.hides_cache else read,
            "prompt_tokens_details": {"cached_tokens": 0 if self.habits.hides_cache else cached},
            "completion_tokens": self.completion_tokens,
            "total_tokens": read + self.completion_tokens,
        }
        self.billed[prompt] += 1
        self.spoiled += fault in UNUSABLE
        count = self.batch_tokens if batch else self.tokens
        count["prompt"] += usage["prompt_tokens"]
        count["cached"] += usage["prompt_tokens_details"]["cached_tokens"]
        count["completion"] += usage["completion_tokens"]
        reply = {"id": "x", "created": 0, "model": body["model"], "usage": usage}
        if "input" in body:
            return reply | {"data": self.habits.vectors(body["input"])[fault == "fewer" :]}
        if "documents" in body:
            return reply | {"results": self.habits.relevance(body)[fault == "fewer" :]}
        choice = {"index": 0, "finish_reason": self.habits.finish_reason(), "logprobs": None}
        if "prompt" in body:  # /v1/completions; like some real servers it ignores `n`
            text = self.habits.written(self.answer, body)
            return reply | {"object": "text_completion", "choices": [choice | {"text": text}]}
        if fault in ("length", "content_filter", "cut_list"):
            choice["finish_reason"] = "length" if fault == "cut_list" else fault
        text = self.habits.written(self._text(prompt, fault), body)
        choice["message"] = {"role": "assistant", "content": self.habits.content(text)}
        choices = [] if fault == "no_choices" else [choice]
        return reply | {"object": "chat.completion", "choices": choices}

    def _text(self, prompt: str, fault: object) -> str:
        if self.replies:
            return self.replies(prompt)
        task = prompt.split("# Task")[-1]
        if '"entities"' in task or '"strategies"' in task:
            named = [] if fault == "no_entities" else list(self.entities)
            listed = json.dumps({"summary": "A summary.", "entities": named, "strategies": named})
            return listed[:40] if fault == "cut_list" else listed
        words = "About " + ", ".join(re.findall(r"^- (.*)$", task, re.M))
        return words + " word" * (self.completion_tokens - 10)

    def _cached(self, prompt: str) -> int:
        if not self.caches:
            return 0
        cached = 0
        for tokens, prefix in _prefixes(prompt):
            if prefix not in self._prefixes:
                break
            cached = tokens
        return cached

    def _remember(self, prompt: str) -> None:
        if self.caches:
            self._prefixes |= {prefix for _, prefix in _prefixes(prompt)}

    def _files_and_batches(self, method: str, path: str, headers: dict, content: bytes) -> dict | bytes | None:
        parts = path.strip("/").split("/")
        if parts[0] == "files" and method == "POST":
            return self._store(uploaded(headers, content))
        if parts[0] == "files":
            return self._files.get(parts[1])
        if method == "POST" and parts[-1] == "cancel":
            self._batches[parts[1]]["status"] = "cancelled"
            return self._batches[parts[1]]
        if method == "POST":
            return self._start_batch(json.loads(content))
        if len(parts) > 1:
            return self._update_batch(self._batches[parts[1]])
        batches = [self._update_batch(batch) for batch in reversed(self._batches.values())]
        return {"object": "list", "data": batches, "has_more": False}

    def _store(self, content: bytes) -> dict:
        name = f"file-{len(self._files)}"
        self._files[name] = content
        file = {"id": name, "object": "file", "bytes": len(content), "created_at": 0}
        return file | {"filename": "x.jsonl", "purpose": "batch", "status": "processed"}

    def _start_batch(self, body: dict) -> dict:
        head = {"id": f"batch_{len(self._batches)}", "object": "batch", "created_at": 0}
        batch = body | head | {"status": "in_progress", "begun": time.monotonic()}
        self._batches[batch["id"]] = batch
        return batch

    def _update_batch(self, batch: dict) -> dict:
        """End a batch that is retrieved after its delay; a fault makes one of its calls fail."""
        due = time.monotonic() - batch["begun"] >= self.batch_delay
        if batch["status"] == "in_progress" and due:
            good, bad = [], []
            for line in self._files[batch["input_file_id"]].splitlines():
                request, fault = json.loads(line), self._next_fault()
                if isinstance(fault, int) or fault in ("burst", "hang", "torn"):
                    error = {"error": {"message": f"fault {fault}", "code": "server_error"}}
                    bad.append(_batch_line(request, 500, error))
                else:
                    error = self.habits.refusal(request["body"])
                    reply = {"error": error} if error else self._reply(request["body"], fault, True)
                    (bad if error else good).append(_batch_line(request, 400 if error else 200, reply))
            total = {"total": len(good) + len(bad), "completed": len(good), "failed": len(bad)}
            batch |= {"status": "completed", "request_counts": total}
            for name, lines in (("output_file_id", good), ("error_file_id", bad)):
                batch[name] = self._store("\n".join(lines).encode())["id"] if lines else None
        return batch


def _batch_line(request: dict, status: int, body: dict) -> str:
    response = {"status_code": status, "request_id": "r", "body": body}
    return json.dumps({"id": "b", "custom_id": request["custom_id"], "response": response, "error": None})


def _prompt(body: dict) -> str:
    if "input" in body or "documents" in body:
        return json.dumps(body.get("input") or [body["query"], body["documents"]])
    return body["prompt"] if "prompt" in body else body["messages"][0]["content"]


def _prefixes(prompt: str):
    """(tokens, digest) of each prefix that can be cached."""
    step, digest = CACHE_STEP_TOKENS * CHARS_PER_TOKEN, hashlib.blake2b(digest_size=8)
    for end in range(step, len(prompt) + 1, step):
        digest.update(prompt[end - step : end].encode())
        if end // CHARS_PER_TOKEN >= MIN_CACHED_TOKENS:
            yield end // CHARS_PER_TOKEN, digest.digest()


def _send(writer: asyncio.StreamWriter, status: int, value: object, data: bytes = b"", extra: str = "") -> bool:
    if isinstance(value, bytes):
        data = value
    elif value is not None:
        data = json.dumps(value).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{extra}content-length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)
    return True


def _stream_chunk(body: dict, piece: object, finish_reason: str | None) -> dict:
    is_chat = "messages" in body
    choice = {"delta": {"content": piece}} if is_chat else {"text": piece}
    choice |= {"index": 0, "finish_reason": finish_reason}
    kind = "chat.completion.chunk" if is_chat else "text_completion"
    return {"id": "1", "object": kind, "created": 0, "model": "fake", "choices": [choice]}


def _send_event(writer: asyncio.StreamWriter, value: object) -> None:
    """Write a server-sent event as one HTTP chunk."""
    data = f"data: {value if isinstance(value, str) else json.dumps(value)}\n\n".encode()
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="default: a free port, which is printed")
    parser.add_argument("--entities", type=int, default=len(ENTITIES), help="entities per article")
    parser.add_argument("--completion_tokens", type=int, default=1000, help="length of every reply")
    for name in ("latency", "tokens_per_s", "requests_per_minute", "fault_share", "burst"):
        parser.add_argument(f"--{name}", type=float, default=float(name == "burst"), help="default %(default)s")
    parser.add_argument("--no_limit_headers", action="store_true", help="429 without headers")
    parser.add_argument("--no_refusals", action="store_true", help="only faults that are billed")
    parser.add_argument("--late_errors", action="store_true", help="5xx after the latency")
    parser.add_argument("--caches", action="store_true", help="report cached prompt tokens")
    args = vars(parser.parse_args())
    port, names = args.pop("port"), [f"Entity {n}" for n in range(args.pop("entities"))]
    headers = not args.pop("no_limit_headers")
    server = FakeOpenAI(**args, entities=tuple(names), limit_headers=headers, keeps_bodies=False)

    async def serve() -> None:
        print(f"http://127.0.0.1:{await server.listen(port)}/v1", flush=True)
        await asyncio.Event().wait()

    asyncio.run(serve())


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
