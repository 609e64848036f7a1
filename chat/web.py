"""Chat on a web page: one model, or two side by side, with the articles and the passages of a corpus.

The server keeps no conversation: each request brings its own, and the visitor's browser stores them.
"""

import argparse
import asyncio
import contextlib
import html
import itertools
import json
import secrets
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from chat.body_limit import BodyLimit
from chat.compare import Corpus, Side, no_passages, side_by_side, with_titles
from chat.conversation import Conversation, ReplyStatus, Sampling, parse_temperature
from inference.completions import strip_reasoning
from inference.retrieval import Chunk
from utils.errors import UserError
from utils.io import read_text

PAGE = Path(__file__).parent / "page.html"
ROLES = ("user", "assistant", "notice")  # of a history's messages; notices are not the model's
SECONDS_PER_EVENT = 0.05  # of a growing reply, at least
MAX_SYSTEM_CHARS = 100_000
# Nothing is fetched from other hosts, whatever a reply contains.
POLICY = "default-src 'none'; connect-src 'self'; frame-src 'self'; style-src 'unsafe-inline'; img-src data:; "
DATA_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; sandbox allow-scripts"
)


@dataclass(frozen=True)
class Article:
    """An article that is offered to chat about."""

    title: str
    byline: str
    text: str


@dataclass(frozen=True)
class WebSettings:
    """Settings of the page."""

    sampling: Sampling
    system: str  # system message
    articles: list[Article]
    host: str
    port: int
    corpus: Corpus | None = None  # searched for every message of a comparison
    about: str = ""  # the checkpoint's corpus and accuracy
    passages: Path | None = None  # page of inspect_entigraph.py --html, if there is one
    passages_command: str = ""  # writes it


@dataclass(frozen=True)
class Request:
    """A visitor's message, with a history for each model."""

    message: str
    histories: list[list[dict]]
    sampling: Sampling
    system: str


def serve(sides: list[Side], settings: WebSettings) -> None:
    """Serve the page until Ctrl-C. Raises UserError if the web packages are missing or the port is taken."""
    try:
        import uvicorn

        app = make_app(sides, settings)
    except ImportError as error:
        raise UserError('--web: its packages are not installed; run: pip install -e ".[web]"') from error
    config = uvicorn.Config(app, log_level="error", lifespan="off", access_log=False, timeout_graceful_shutdown=1)
    with listen(settings.host, settings.port) as listening, contextlib.suppress(KeyboardInterrupt):
        print(f"http://{settings.host}:{settings.port}/  (Ctrl-C stops the server)", file=sys.stderr, flush=True)
        uvicorn.Server(config).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise UserError(f"--host {host} --port {port}: cannot listen there ({error}); name another port") from error


def make_app(sides: list[Side], settings: WebSettings):
    """The application: the page, its articles, replies, and the page of passages."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, StreamingResponse
    from starlette.routing import Route

    turns = asyncio.Semaphore(min(side.engine.concurrency for side in sides))
    counter = itertools.count(1)  # added to the seed

    async def page(_) -> HTMLResponse:
        nonce = secrets.token_urlsafe(16)
        policy = {"content-security-policy": f"{POLICY}script-src 'nonce-{nonce}'"}
        return HTMLResponse(render_page(sides, settings, nonce), headers=policy)

    async def article(request) -> JSONResponse:
        number = request.path_params["number"]
        if number >= len(settings.articles):
            return JSONResponse(None, 404)
        return JSONResponse(vars(settings.articles[number]))

    async def reply(request):
        if request.headers.get("content-type") != "application/json":  # pages of other sites cannot send this type
            return PlainTextResponse("content-type: application/json is expected", 415)
        try:
            asked = parse_request(await request.body(), sides, settings)
        except UserError as error:
            return PlainTextResponse(str(error), 400)
        asked = replace(asked, sampling=replace(asked.sampling, seed=settings.sampling.seed + next(counter)))
        return StreamingResponse(stream_lines(asked, sides, settings.corpus, turns), media_type="application/x-ndjson")

    async def passages(request) -> HTMLResponse:
        file = passage_file(settings.passages, request.path_params["name"])
        text = read_text(file, "write it again") if file else f"<p>{html.escape(settings.passages_command)}</p>"
        return HTMLResponse(text, 200 if file else 404, headers={"content-security-policy": DATA_POLICY})

    routes = [
        Route("/", page),
        Route("/articles/{number:int}", article),
        Route("/reply", reply, methods=["POST"]),
        Route("/data/{name:path}", passages),
    ]
    middleware = [Middleware(BodyLimit)]
    if settings.host in ("127.0.0.1", "localhost", "::1"):  # a name of another site could point here
        middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"]))
    return Starlette(routes=routes, middleware=middleware)


def passage_file(page: Path | None, name: str) -> Path | None:
    """The page of passages, or a document's page in the folder of its name. None for anything else."""
    if page is None or not page.is_file():
        return None
    allowed = {page.name: page} | {
        f"{page.stem}/{file.name}": file for file in sorted(page.with_suffix("").glob("*.html"))
    }
    return allowed.get(name)


def render_page(sides: list[Side], settings: WebSettings, nonce: str) -> str:
    models = [{"label": side.label, "base": side.engine.is_base_model} for side in sides]
    values = {
        "models": models,
        "about": settings.about,
        "titles": [article.title for article in settings.articles],
        "temperature": settings.sampling.temperature,
        "system": settings.system,
        "takesSystem": any(not model["base"] for model in models),
        "passages": f"data/{settings.passages.name}" if settings.passages and settings.passages.is_file() else "",
        "passagesCommand": settings.passages_command,
        "found": passages_html(settings.corpus, None) if len(sides) > 1 else "",
    }
    title = " and ".join(side.label for side in sides)
    data = json.dumps(values, ensure_ascii=False).replace("<", "\\u003c")
    page = read_text(PAGE, "it ships with the repository")
    parts = {"{{title}}": html.escape(title), "{{nonce}}": nonce, "{{settings}}": data}
    for name, value in parts.items():
        page = page.replace(name, value)
    return page


def parse_request(body: bytes, sides: list[Side], settings: WebSettings) -> Request:
    """The visitor's request. Raises UserError for anything but what the page sends."""
    try:
        data = json.loads(body)
        message, histories, system = data["message"], data["histories"], data["system"]
        temperature = parse_temperature(str(data["temperature"]))
        is_text = isinstance(message, str) and isinstance(system, str) and len(system) <= MAX_SYSTEM_CHARS
        sizes = [len(history) for history in histories]
        is_valid = is_text and all(is_message(entry) for history in histories for entry in history)
    except (ValueError, KeyError, TypeError, RecursionError, argparse.ArgumentTypeError) as error:
        raise UserError(f"not a request of this page: {error}") from error
    if not is_valid or len(sizes) != len(sides) or not message.strip():
        raise UserError("not a request of this page: a message, and a history for each model, are expected")
    return Request(message, histories, replace(settings.sampling, temperature=temperature), system)


def is_message(entry: object) -> bool:
    return isinstance(entry, dict) and entry.get("role") in ROLES and isinstance(entry.get("content"), str)


async def stream_lines(
    asked: Request, sides: list[Side], corpus: Corpus | None, turns: asyncio.Semaphore
) -> AsyncIterator[bytes]:
    """The events of a reply as lines of JSON, when it is this visitor's turn. A visitor who leaves ends it."""
    if turns.locked():
        yield b'{"waiting": true}\n'
    async with turns:
        events = reply_events(asked, sides, corpus)
        try:
            while (event := await asyncio.to_thread(next, events, None)) is not None:
                yield json.dumps(event).encode() + b"\n"
        finally:
            await asyncio.shield(asyncio.to_thread(close_when_idle, events))


def close_when_idle(events: Iterator[dict]) -> None:
    """Close a generator whose last step may still be running in another thread."""
    while True:
        try:
            events.close()
            return
        except ValueError:  # generator already executing
            time.sleep(0.01)


def reply_events(asked: Request, sides: list[Side], corpus: Corpus | None) -> Iterator[dict]:
    """The passages found for a comparison, then notices and growing texts, each with the index of its side."""
    passages = corpus.search(asked.message) if corpus and len(sides) > 1 else []
    if len(sides) > 1:
        yield {"found": passages_html(corpus, passages)}
    with contextlib.ExitStack() as stack:
        streams = [
            stack.enter_context(contextlib.closing(side_events(side, asked, history, passages)))
            for side, history in zip(sides, asked.histories, strict=True)
        ]
        sent: list = [None] * len(streams)
        for latest in side_by_side(streams):
            for index, event in enumerate(latest):
                if event is not None and event is not sent[index]:
                    sent[index] = event
                    yield {"side": index} | event


def side_events(side: Side, asked: Request, history: list[dict], passages: list[Chunk]) -> Iterator[dict]:
    """Yield what one model answers: {"notices", "text", "html"} so far, and at the end the same with "done"."""
    from chat.markdown import to_html

    base = side.engine.is_base_model
    conversation = to_conversation([] if base else history, "" if base else asked.system)
    conversation.add_user(asked.message)
    status, notices, text = ReplyStatus(), [], ""
    pieces = replace(side, conversation=conversation).stream(passages, asked.sampling, status, notices.append)

    def event(**more) -> dict:
        return {"notices": list(notices), "text": text, "html": to_html(text)} | more

    try:
        sent_at = 0.0
        with contextlib.closing(pieces):
            for piece in pieces:
                text += piece
                if time.monotonic() - sent_at >= SECONDS_PER_EVENT:
                    sent_at = time.monotonic()
                    yield event()
        text = strip_reasoning(text, asked.message)
        if not text:
            notices.append("the reply is empty")
        if status.finish_reason == "length":
            notices.append("reply cut off at the longest length")
    except UserError as error:  # an incomplete reply becomes part of the notice, not of the history
        notices.append(f"{text} … {error}" if text else str(error))
        text = ""
    yield event(done=True)


def to_conversation(history: list[dict], system: str) -> Conversation:
    """A history without notices, and without messages that only received a notice."""
    conversation = Conversation(system)
    unanswered = None
    for message in history:
        if message["role"] == "user":
            unanswered = message["content"]
        elif unanswered is not None and message["role"] == "assistant":
            conversation.add_user(unanswered)
            conversation.add_assistant(strip_reasoning(message["content"], unanswered))
            unanswered = None
    return conversation


def passages_html(corpus: Corpus | None, passages: list[Chunk] | None) -> str:
    """The passages found, escaped; before the first message (None) what will stand there."""
    if corpus and passages is None:
        return f"<p>Passages of {html.escape(corpus.task)} that a search finds for your message will be shown here.</p>"
    if not passages:
        return f"<p>{html.escape(no_passages(corpus))}</p>"
    parts = [
        f"{f'<h4>{html.escape(name)}</h4>' if name else ''}<p>{html.escape(text)}</p>"
        for name, text in with_titles(passages)
    ]
    return f'<h3>Passages found in {html.escape(corpus.task)}</h3><div class="passages">{"".join(parts)}</div>'
