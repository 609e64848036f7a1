"""Chat on a web page, with Gradio's ChatInterface."""

import contextlib
import functools
import html
import itertools
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from chat.conversation import Conversation, Engine, ReplyStatus, Sampling, make_message, stream_reply
from inference.completions import strip_reasoning
from utils.errors import UserError

NOTICE = "Notice"  # the title of a message that is not the model's


@dataclass(frozen=True)
class WebSettings:
    """Settings of the page."""

    sampling: Sampling
    system: str  # system message
    titles: list[str]  # articles offered as example messages
    host: str
    port: int


def serve(engine: Engine, settings: WebSettings) -> None:
    """Serve the page until Ctrl-C. Raises UserError if Gradio is missing or the port is taken."""
    check_port(settings.host, settings.port)
    page = make_page(engine, settings)
    page.queue(default_concurrency_limit=engine.concurrency)
    page.launch(
        server_name=settings.host,
        server_port=settings.port,
        share=False,
        quiet=True,
        ssr_mode=False,
        footer_links=[],
        # System fonts: the default theme requests fonts from Google.
        theme=import_gradio().themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        prevent_thread_lock=True,
    )
    try:
        print(f"http://{settings.host}:{settings.port}/  (Ctrl-C stops the server)", file=sys.stderr, flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        page.close()


def check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise UserError(f"--host {host} --port {port}: cannot listen there ({error}); name another port") from error


def import_gradio():
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise UserError('--web: Gradio is not installed; run: pip install -e ".[web]"') from error
    return gradio


def make_page(engine: Engine, settings: WebSettings):
    """The Gradio page. Conversations are stored in the visitor's browser only."""
    mode = " (base model: continues your text)" if engine.is_base_model else ""
    return import_gradio().ChatInterface(
        fn=make_reply_function(engine, settings),
        chatbot=verbatim_chatbot()(render_markdown=False, height="70vh", show_label=False, buttons=[]),
        title="Chat",
        description=html.escape(f"{Path(engine.name).name}{mode}"),
        examples=[f'Tell me about the article "{title}".' for title in settings.titles] or None,
        example_labels=settings.titles or None,
        save_history=True,
        flagging_mode="never",
        api_visibility="private",
    )


@functools.cache
def verbatim_chatbot():
    """Gradio's Chatbot class, patched to show every character as written.

    Gradio renders messages as HTML even without Markdown: scripts are removed, but `<b>` would vanish and images
    would be fetched. Therefore the browser receives escaped text; there are no copy buttons because they would
    copy it. The class is patched rather than subclassed because Gradio looks for a subclass's own front end, and
    creates a new object whenever an earlier conversation is opened.
    """
    chatbot = import_gradio().Chatbot
    postprocess, preprocess = chatbot.postprocess, chatbot.preprocess
    chatbot.postprocess = lambda self, value: map_texts(postprocess(self, value), html.escape)
    chatbot.preprocess = lambda self, payload: preprocess(self, map_texts(payload, html.unescape))
    return chatbot


def map_texts(data, change: Callable[[str], str]):
    """Apply `change` to every text of Gradio's ChatbotData, in place."""
    for message in data.root if data else []:
        for part in message.content:
            if part.type == "text":
                part.text = change(part.text)
    return data


def make_reply_function(engine: Engine, settings: WebSettings):
    """Gradio's callback: a message and the history -> the messages that answer it, growing."""
    counter = itertools.count(1)  # added to the seed

    def reply(message: str, history: list[dict]) -> Iterator[list[dict]]:
        conversation = to_conversation([] if engine.is_base_model else history, settings.system)
        conversation.add_user(message)
        sampling = replace(settings.sampling, seed=settings.sampling.seed + next(counter))
        status, notices, text = ReplyStatus(), [], ""

        def notice(sentence: str) -> None:
            notices.append(make_message("assistant", sentence) | {"metadata": {"title": NOTICE}})

        pieces = stream_reply(engine, conversation.messages(), sampling, status, notice)
        try:
            with contextlib.closing(pieces):
                for piece in pieces:
                    text += piece
                    yield [*notices, make_message("assistant", text)]
            text = strip_reasoning(text, message)
            if not text:
                notice("the reply is empty")
            if status.finish_reason == "length":
                notice("reply cut off at the longest length")
        except UserError as error:  # an incomplete reply becomes part of the notice, not of the history
            notice(f"{text} … {error}" if text else str(error))
            text = ""
        yield [*notices, *([make_message("assistant", text)] if text else [])]

    return reply


def to_conversation(history: list[dict], system: str) -> Conversation:
    """Gradio's history without notices, and without messages that only received a notice."""
    conversation = Conversation(system)
    unanswered = None
    for message in history:
        if message["role"] == "user":
            unanswered = text_of(message)
        elif unanswered is not None and (message.get("metadata") or {}).get("title") != NOTICE:
            conversation.add_user(unanswered)
            conversation.add_assistant(strip_reasoning(text_of(message), unanswered))
            unanswered = None
    return conversation


def text_of(message: dict) -> str:
    """The text of a Gradio message, whose content is a string or a list of parts."""
    content = message["content"]
    parts = content if isinstance(content, list) else [content]
    return "".join(part if isinstance(part, str) else part.get("text", "") for part in parts)
