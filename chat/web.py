"""Chat on a web page: one model, or two side by side, with the articles and the passages of a corpus.

The server keeps no conversation: each request brings its own, and the visitor's browser stores them.
"""

import asyncio
import contextlib
import html
import ipaddress
import itertools
import json
import secrets
import socket
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from chat.body_limit import BodyLimit
from chat.compare import Corpus, Side
from chat.conversation import Sampling
from chat.replies import parse_request, passages_html, stream_lines
from utils.errors import UserError
from utils.io import read_text

ALLOWED_HOSTS = ["127.0.0.1", "localhost", "["]  # Starlette cuts [::1]:7860 at its first colon
PAGE = Path(__file__).parent / "page.html"
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


def serve(sides: list[Side], settings: WebSettings) -> None:
    """Serve the page until Ctrl-C. Raises UserError if the web packages are missing or the port is taken."""
    try:
        import uvicorn

        app = make_app(sides, settings)
    except ImportError as error:
        raise UserError('--web: its packages are not installed; run: pip install -e ".[web]"') from error
    config = uvicorn.Config(app, log_level="error", lifespan="off", access_log=False, timeout_graceful_shutdown=1)
    with listen(settings.host, settings.port) as listening, contextlib.suppress(KeyboardInterrupt):
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        print(f"http://{host}:{settings.port}/  (Ctrl-C stops the server)", file=sys.stderr, flush=True)
        uvicorn.Server(config).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if not host:
        raise UserError("--host: is empty; give 127.0.0.1, or 0.0.0.0 for every interface")
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise UserError(f"--host {host} --port {port}: cannot listen there ({error}); name another port") from error


def is_loopback(host: str) -> bool:
    """True for addresses that other machines cannot reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"


def make_app(sides: list[Side], settings: WebSettings):
    """The application: the page, its articles, replies, and the page of passages."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import HTMLResponse, JSONResponse
    from starlette.routing import Route

    async def page(_) -> HTMLResponse:
        nonce = secrets.token_urlsafe(16)
        policy = {"content-security-policy": f"{POLICY}script-src 'nonce-{nonce}'"}
        return HTMLResponse(render_page(sides, settings, nonce), headers=policy)

    by_number = {str(number): vars(article) for number, article in enumerate(settings.articles)}

    async def article(request) -> JSONResponse:
        chosen = by_number.get(request.path_params["number"])
        return JSONResponse(chosen, 200 if chosen else 404)

    async def passages(request) -> HTMLResponse:
        file = passage_file(settings.passages, request.path_params["name"])
        text = read_text(file, "write it again") if file else f"<p>{html.escape(settings.passages_command)}</p>"
        return HTMLResponse(text, 200 if file else 404, headers={"content-security-policy": DATA_POLICY})

    routes = [
        Route("/", page),
        Route("/articles/{number}", article),
        Route("/reply", make_reply_function(sides, settings), methods=["POST"]),
        Route("/data/{name:path}", passages),
    ]
    middleware = [Middleware(BodyLimit)]
    if is_loopback(settings.host):  # the name of another site could point here
        middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=[*ALLOWED_HOSTS, settings.host]))
    return Starlette(routes=routes, middleware=middleware)


def make_reply_function(sides: list[Side], settings: WebSettings):
    """The function that answers a visitor's message with a stream of events."""
    from starlette.responses import PlainTextResponse, StreamingResponse

    turns = asyncio.Semaphore(min(side.engine.concurrency for side in sides))
    counter = itertools.count(1)  # added to the seed

    async def reply(request):
        if request.headers.get("content-type") != "application/json":  # pages of other sites cannot send this type
            return PlainTextResponse("content-type: application/json is expected", 415)
        try:
            asked = parse_request(await request.body(), sides, settings.sampling)
        except UserError as error:
            return PlainTextResponse(str(error), 400)
        asked = replace(asked, sampling=replace(asked.sampling, seed=settings.sampling.seed + next(counter)))
        return StreamingResponse(stream_lines(asked, sides, settings.corpus, turns), media_type="application/x-ndjson")

    return reply


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
        "passages": f"data/{quote(settings.passages.name)}"
        if settings.passages and settings.passages.is_file()
        else "",
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
