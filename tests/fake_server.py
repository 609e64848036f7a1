"""An OpenAI-compatible server of the tests' own, on a loopback port, that behaves as badly as told.

It counts what a real one would bill: every answered call, by prompt.
"""

import json
import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ENTITIES = ["Ada", "Bell", "Clock", "Door", "Egg", "Fog"]


class FakeServer:
    """`faults` are used up first, one a request: a status code, or `hang`, `torn`, `no_choices`,
    `bad_json`, `no_entities`, `length`. `latency` is in s."""

    def __init__(self):
        self.billed: Counter[str] = Counter()
        self.requests = 0
        self.in_flight = self.most_in_flight = 0
        self.faults: list = []
        self.latency = 0.0
        self.keys: set[str] = set()
        self.bodies: list[dict] = []
        self.answer = "Thought. Answer: B."
        self.lock = threading.Lock()

    def __enter__(self) -> "FakeServer":
        handler = type("Handler", (_Handler,), {"fake": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        return self

    def __exit__(self, *exception: object) -> None:
        self.http.shutdown()
        self.http.server_close()


class _Handler(BaseHTTPRequestHandler):
    fake: FakeServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        fake = self.fake
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        key = self.headers.get("authorization", "").removeprefix("Bearer ")
        with fake.lock:
            fake.requests += 1
            fake.in_flight += 1
            fake.most_in_flight = max(fake.most_in_flight, fake.in_flight)
            fault = fake.faults.pop(0) if fake.faults else None
            fake.keys.add(key)
            fake.bodies.append(body)
        try:
            self._answer(body, fault, key)
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            with fake.lock:
                fake.in_flight -= 1

    def _answer(self, body: dict, fault: object, key: str) -> None:
        time.sleep(self.fake.latency)
        if isinstance(fault, int):
            code = {401: "invalid_api_key", 429: "rate_limit_exceeded"}.get(fault)
            error = {
                "message": f"fault {fault}, your key {key} was seen",
                "code": code,
                "type": "x",
            }
            self._send(json.dumps({"error": error}), fault)
        elif fault == "torn":
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", "1000")
            self.end_headers()
            self.wfile.write(b'{"id": "x", "choi')
            self.close_connection = True
        elif fault == "bad_json":
            self._send("<html>busy</html>")
        elif fault == "no_choices":
            self._send(json.dumps({"id": "x", "object": "chat.completion", "choices": []}))
        else:
            self._send(json.dumps(self._completion(body, fault)))

    def _completion(self, body: dict, fault: object) -> dict:
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        base = {"id": "x", "created": 0, "model": body["model"], "usage": usage}
        if "prompt" in body:  # /v1/completions; like some real servers it ignores `n`
            self._bill(body["prompt"])
            choice = {
                "index": 0,
                "text": self.fake.answer,
                "finish_reason": "stop",
                "logprobs": None,
            }
            return base | {"object": "text_completion", "choices": [choice]}
        prompt = body["messages"][0]["content"]
        self._bill(prompt)
        if '"entities"' in prompt:
            text = json.dumps(
                {"summary": "A summary.", "entities": [] if fault == "no_entities" else ENTITIES}
            )
        else:
            text = "About " + ", ".join(re.findall(r"^- (.*)$", prompt.split("# Task")[1], re.M))
        choice = {
            "index": 0,
            "finish_reason": "length" if fault == "length" else "stop",
            "message": {"role": "assistant", "content": text},
        }
        return base | {"object": "chat.completion", "choices": [choice]}

    def _bill(self, prompt: str) -> None:
        with self.fake.lock:
            self.fake.billed[prompt] += 1

    def _send(self, text: str, status: int = 200) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        if status == 429:
            self.send_header("retry-after", "0.05")
        self.end_headers()
        self.wfile.write(data)
