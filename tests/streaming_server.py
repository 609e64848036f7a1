"""A chat server that streams, for the tests of interactive.py; it behaves as badly as its words are told."""

import asyncio
import json
import threading

from aiohttp import web


class StreamingServer:
    """Answers `turn N: ` and the message's beginning, N being the user's messages that it was sent.

    A message with `slow` in it has 400 words at 50 ms, with `die` the connection cut after two words,
    with `unended` an end without a finish_reason, with `refuse` a 500 at every try. Above `most_bytes` of messages
    it answers 400, as vLLM does. `bodies`: the requests.
    """

    def __init__(self, most_bytes: int = 1 << 30, max_model_len: int | None = None, models=("fake",)):
        self.broken, self.pieces, self.listed = False, None, None  # every call a 500; other answers
        self.most_bytes, self.max_model_len, self.models, self.bodies = most_bytes, max_model_len, models, []

    def __enter__(self) -> "StreamingServer":
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        port = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        self.url = f"http://127.0.0.1:{port}/v1"
        return self

    def __exit__(self, *exception: object) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _start(self) -> int:
        app = web.Application(client_max_size=1 << 28)
        app.router.add_get("/v1/models", self._list)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._chat)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        return site._server.sockets[0].getsockname()[1]

    async def _list(self, request) -> web.Response:
        if self.listed is not None:
            return web.json_response(self.listed)
        extra = {"max_model_len": self.max_model_len} if self.max_model_len else {}
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "x"} | extra for name in self.models]
        return web.json_response({"object": "list", "data": models})

    async def _chat(self, request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        messages = body.get("messages") or [{"role": "user", "content": body["prompt"]}]
        text = messages[-1]["content"]
        if sum(len(m["content"].encode()) for m in messages) > self.most_bytes:
            error = {"message": "This model's maximum context length is 100 tokens.", "code": 400}
            return web.json_response({"error": error}, status=400)
        if "refuse" in text or self.broken:
            words = f"\x1b[31mbusy <img src=x onerror='window.hacked=3'>, {request.headers['authorization']}"
            return web.json_response({"error": {"message": words}}, status=500)
        words = [f"turn {sum(m['role'] == 'user' for m in messages)}:", *text[:60].split()]
        if self.pieces is not None:
            words = self.pieces
        if "slow" in text:
            words = [f"word{n}" for n in range(400)]
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for number, word in enumerate(words):
            if "die" in text and number == 2:
                request.transport.abort()
                return response
            await self._send(response, body, f"{word} ", None)
            await asyncio.sleep(0.05 if "slow" in text else 0.001)
        if "unended" not in text:
            await self._send(response, body, "", "stop")
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _send(self, response, body: dict, piece: str, reason: str | None) -> None:
        chats = "messages" in body
        choice = {"delta": {"content": piece}} if chats else {"text": piece}
        choice |= {"index": 0, "finish_reason": reason}
        kind = "chat.completion.chunk" if chats else "text_completion"
        chunk = {"id": "1", "object": kind, "created": 0, "model": "fake", "choices": [choice]}
        await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
