"""An OpenAI-compatible server that answers with nothing of worth, bills exactly, and behaves as badly as told.

    python tests/fake_openai.py --port 8001 --latency 1 --requests_per_minute 600 --fault_share 0.1

Chat completions, completions, embeddings, reranking, files and batches, on a loopback port. It bills what a real one would:
every reply that it has made, whether or not the client was still there to read it; refusals (429 and
other HTTP errors) are free. `GET /count` returns that bill as JSON.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

ENTITIES = ["Ada", "Bell", "Clock", "Door", "Egg", "Fog"]
# Each was seen of a real server or the proxy before it. Billed: all but the HTTP errors.
FAULTS = ("burst", 500, "hang", "torn", "bad_json", "no_entities", "length")
# Replies that are JSON and odd, each seen of some server or proxy.
ODD = {
    "null_choice": {"choices": [None]},
    "text_message": {"choices": [{"message": "x"}]},
    "list_content": {"choices": [{"message": {"content": [{"text": "x"}]}, "finish_reason": "stop"}]},
    "an_error": {"choices": None, "error": {"message": "busy"}},
    "no_usage": {"usage": None},
    "odd_usage": {"usage": "n/a"},
    "surrogate": {"choices": [{"message": {"content": "half \ud83d of it"}, "finish_reason": "stop"}]},
    "no_reason": {"choices": [{"message": {"content": "Some text."}}]},
}
SPOILING = ("hang", "torn", "bad_json", "no_entities", "no_choices")
BURST_S = 0.05  # how long a "burst" refuses every call
CHARS_A_TOKEN = 4
CACHE_FROM, CACHE_STEP = 1024, 128  # tokens: the shortest prefix that is cached, and its steps


@dataclass
class FakeOpenAI:
    """`faults` are used up first, one a call: a status code, or one of FAULTS, or `no_choices`,
    `content_filter`, `insufficient_quota`, or one of ODD; then a `fault_share` of the calls has one of FAULTS. Times are in s."""

    latency: float = 0.0
    tokens_per_s: float = 0.0  # of the completion, on top of the latency; 0: at once
    completion_tokens: int = 10
    entities: tuple[str, ...] = tuple(ENTITIES)
    requests_per_minute: float = 0.0  # 0: no limit
    burst: float = 1.0  # calls that the limit lets through at once
    limit_headers: bool = True
    no_refusals: bool = False  # of FAULTS, those alone that are billed
    late_errors: bool = False  # 5xx after the latency, not at once
    caches: bool = False
    fault_share: float = 0.0
    seed: int = 0
    keeps_bodies: bool = True
    answer: str = "Thought. Answer: B."
    replies: Callable[[str], str] | None = None  # to a chat's prompt, in place of its own
    batch_delay: float = 0.0
    faults: list = field(default_factory=list)
    requests: int = 0
    refused: int = 0
    spoiled: int = 0  # replies that were billed and could not be used
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
        """Serve from a thread of its own, on a free port."""
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
        """What has been asked of it and what it has billed."""
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
        """One connection after another request on it, until either side hangs up."""
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
        self.paths.append(path)
        if not path.endswith(("completions", "embeddings", "rerank")):
            return _send(writer, 200, self._files_and_batches(method, path, headers, content))
        self.requests += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self.first_at = self.first_at or time.monotonic()
        try:
            return await self._call(writer, json.loads(content), headers)
        finally:
            self.in_flight -= 1
            self.last_at = time.monotonic()

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

    async def _deliver(self, writer: asyncio.StreamWriter, reply: dict, fault: object) -> bool:
        if fault == "hang":
            await asyncio.sleep(3600)
        if fault == "torn":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n" + b'{"id": "x", "choi')
            return False
        if fault in ODD:
            return _send(writer, 200, reply | ODD[fault])
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
        """Seconds until a call would be let through; 0 where this one is."""
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
        """Make the reply, and bill it."""
        prompt = _prompt(body)
        usage = {
            "prompt_tokens": len(prompt) // CHARS_A_TOKEN,
            "prompt_tokens_details": {"cached_tokens": self._cached(prompt)},
            "completion_tokens": self.completion_tokens,
            "total_tokens": len(prompt) // CHARS_A_TOKEN + self.completion_tokens,
        }
        self.billed[prompt] += 1
        self.spoiled += fault in SPOILING
        count = self.batch_tokens if batch else self.tokens
        count["prompt"] += usage["prompt_tokens"]
        count["cached"] += usage["prompt_tokens_details"]["cached_tokens"]
        count["completion"] += usage["completion_tokens"]
        reply = {"id": "x", "created": 0, "model": body["model"], "usage": usage}
        if "input" in body:
            return reply | {"data": _vectors(body["input"])[fault == "fewer" :]}
        if "documents" in body:
            return reply | {"results": _relevance(body)[fault == "fewer" :]}
        choice = {"index": 0, "finish_reason": "stop", "logprobs": None}
        if "prompt" in body:  # /v1/completions; like some real servers it ignores `n`
            return reply | {"object": "text_completion", "choices": [choice | {"text": self.answer}]}
        if fault in ("length", "content_filter"):
            choice["finish_reason"] = fault
        choice["message"] = {"role": "assistant", "content": self._text(prompt, fault)}
        choices = [] if fault == "no_choices" else [choice]
        return reply | {"object": "chat.completion", "choices": choices}

    def _text(self, prompt: str, fault: object) -> str:
        if self.replies:
            return self.replies(prompt)
        task = prompt.split("# Task")[-1]
        if '"entities"' in task or '"strategies"' in task:
            named = [] if fault == "no_entities" else list(self.entities)
            return json.dumps({"summary": "A summary.", "entities": named, "strategies": named})
        words = "About " + ", ".join(re.findall(r"^- (.*)$", task, re.M))
        return words + " word" * (self.completion_tokens - 10)

    def _cached(self, prompt: str) -> int:
        if not self.caches:
            return 0
        found = 0
        for tokens, prefix in _prefixes(prompt):
            if prefix not in self._prefixes:
                break
            found = tokens
        return found

    def _remember(self, prompt: str) -> None:
        if self.caches:
            self._prefixes |= {prefix for _, prefix in _prefixes(prompt)}

    def _files_and_batches(self, method: str, path: str, headers: dict, content: bytes) -> dict:
        parts = path.strip("/").split("/")
        if parts[0] == "files" and method == "POST":
            return self._store(_uploaded(headers, content))
        if parts[0] == "files":
            return self._files[parts[1]]
        if method == "POST":
            return self._start_batch(json.loads(content))
        if len(parts) > 1:
            return self._look_at(self._batches[parts[1]])
        found = [self._look_at(batch) for batch in reversed(self._batches.values())]
        return {"object": "list", "data": found, "has_more": False}

    def _store(self, content: bytes) -> dict:
        name = f"file-{len(self._files)}"
        self._files[name] = content
        return {
            "id": name,
            "object": "file",
            "bytes": len(content),
            "created_at": 0,
            "filename": "x.jsonl",
            "purpose": "batch",
            "status": "processed",
        }

    def _start_batch(self, body: dict) -> dict:
        batch = body | {
            "id": f"batch_{len(self._batches)}",
            "object": "batch",
            "created_at": 0,
            "status": "in_progress",
            "begun": time.monotonic(),
        }
        self._batches[batch["id"]] = batch
        return batch

    def _look_at(self, batch: dict) -> dict:
        """A batch ends when it is looked at after its delay; a fault makes one of its calls fail."""
        late = time.monotonic() - batch["begun"] >= self.batch_delay
        if batch["status"] == "in_progress" and late:
            good, bad = [], []
            for line in self._files[batch["input_file_id"]].splitlines():
                request, fault = json.loads(line), self._next_fault()
                if isinstance(fault, int) or fault in ("burst", "hang", "torn"):
                    error = {"error": {"message": f"fault {fault}", "code": "server_error"}}
                    bad.append(_batch_line(request, 500, error))
                else:
                    good.append(_batch_line(request, 200, self._reply(request["body"], fault, True)))
            total = {"total": len(good) + len(bad), "completed": len(good), "failed": len(bad)}
            batch |= {"status": "completed", "request_counts": total}
            for name, lines in (("output_file_id", good), ("error_file_id", bad)):
                batch[name] = self._store("\n".join(lines).encode())["id"] if lines else None
        return batch


def _batch_line(request: dict, status: int, body: dict) -> str:
    response = {"status_code": status, "request_id": "r", "body": body}
    return json.dumps({"id": "b", "custom_id": request["custom_id"], "response": response, "error": None})


def _uploaded(headers: dict, content: bytes) -> bytes:
    """The file out of a multipart form."""
    boundary = b"--" + re.search(r'boundary="?([^";]+)', headers["content-type"])[1].encode()
    parts = [part.partition(b"\r\n\r\n") for part in content.split(boundary)]
    return next(body[:-2] for head, _, body in parts if b"filename=" in head)


def _vectors(texts: list[str]) -> list[dict]:
    """Words hashed into 64 places: texts that share words are near; not in the order of the texts."""
    data = []
    for index, text in enumerate(texts):
        vector = [0.0] * 64
        for word in re.findall(r"\w+", text.lower()):
            vector[hashlib.blake2b(word.encode()).digest()[0] % 64] += 1
        data.append({"index": index, "embedding": vector})
    return data[::-1]


def _relevance(body: dict) -> list[dict]:
    """The share of a document's words that the query has, best first."""
    query = set(re.findall(r"\w+", body["query"].lower()))
    results = []
    for index, document in enumerate(body["documents"]):
        words = set(re.findall(r"\w+", document.lower()))
        results.append({"index": index, "relevance_score": len(words & query) / max(1, len(words))})
    return sorted(results, key=lambda result: -result["relevance_score"])


def _prompt(body: dict) -> str:
    if "input" in body or "documents" in body:
        return json.dumps(body.get("input") or [body["query"], body["documents"]])
    return body["prompt"] if "prompt" in body else body["messages"][0]["content"]


def _prefixes(prompt: str):
    step, digest = CACHE_STEP * CHARS_A_TOKEN, hashlib.blake2b(digest_size=8)
    for end in range(step, len(prompt) + 1, step):
        digest.update(prompt[end - step : end].encode())
        if end // CHARS_A_TOKEN >= CACHE_FROM:
            yield end // CHARS_A_TOKEN, digest.digest()


def _send(writer: asyncio.StreamWriter, status: int, value: object, data: bytes = b"", extra: str = "") -> bool:
    if isinstance(value, bytes):
        data = value
    elif value is not None:
        data = json.dumps(value).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{extra}content-length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="default: a free one, which is printed")
    parser.add_argument("--entities", type=int, default=len(ENTITIES), help="named by each article")
    parser.add_argument("--completion_tokens", type=int, default=1000, help="of every reply")
    for name in ("latency", "tokens_per_s", "requests_per_minute", "fault_share", "burst"):
        parser.add_argument(f"--{name}", type=float, default=float(name == "burst"), help="default %(default)s")
    parser.add_argument("--no_limit_headers", action="store_true", help="429 and not a word more")
    parser.add_argument("--no_refusals", action="store_true", help="of the faults, the billed alone")
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
