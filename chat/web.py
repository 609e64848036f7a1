"""The conversation as a page, by Gradio's ChatInterface."""

import contextlib
import functools
import html
import itertools
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from chat.conversation import Conversation, ReplyStatus, Sampling, stream_reply
from utils.errors import UserError

NOTICE = "Notice"  # the title of a message that is not the model's


def serve(speaker, sampling: Sampling, system: str, titles: list[str], host: str, port: int, share: bool) -> None:
    """Serve the page until Ctrl-C. Raises UserError where Gradio is missing or the port is taken."""
    check_port(host, port)
    page = make_page(speaker, sampling, system, titles)
    page.queue(default_concurrency_limit=speaker.at_once)
    page.launch(
        server_name=host,
        server_port=port,
        share=share,
        quiet=not share,  # which tells the public address
        ssr_mode=False,
        footer_links=[],
        theme=theme(),
        prevent_thread_lock=True,
    )
    try:
        print(f"http://{host}:{port}/  (Ctrl-C ends it)", file=sys.stderr, flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        page.close()


def check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise UserError(f"--host {host} --port {port}: cannot listen there ({error})") from error


def gradio():
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # it would call home
    try:
        import gradio
    except ImportError as error:
        raise UserError('--web: run: pip install -e ".[web]"') from error
    return gradio


def theme():
    """Gradio's own with the system's fonts: a page on loopback should not ask Google for any."""
    return gradio().themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])


def make_page(speaker, sampling: Sampling, system: str, titles: list[str]):
    """The page. What is said in it is kept by the visitor's browser, and not here."""
    kind = "Continues the text that it is given:" if speaker.completes else "With"
    return gradio().ChatInterface(
        fn=answerer(speaker, sampling, system),
        chatbot=verbatim_chatbot()(render_markdown=False, height="70vh", show_label=False, buttons=[]),
        title="A conversation",
        description=html.escape(f"{kind} {Path(speaker.name).name}"),
        examples=[f'Tell me about the article "{title}".' for title in titles] or None,
        example_labels=titles or None,
        save_history=True,
        flagging_mode="never",
        api_visibility="private",
    )


@functools.cache
def verbatim_chatbot():
    """Gradio's Chatbot, showing every character as it was written. It makes HTML of messages, without
    Markdown too: scripts are taken out, but `<b>` would vanish and a picture be fetched from anywhere. So
    the browser is sent escaped text. Copy buttons would copy that: there are none.

    The class itself is changed: of a subclass Gradio would look for a front end of ours, and an object it
    makes anew when an earlier conversation is opened."""
    chatbot = gradio().Chatbot
    show, read = chatbot.postprocess, chatbot.preprocess
    chatbot.postprocess = lambda self, value: with_texts(show(self, value), html.escape)
    chatbot.preprocess = lambda self, payload: read(self, with_texts(payload, html.unescape))
    return chatbot


def with_texts(data, change: Callable[[str], str]):
    """The Chatbot's messages, as they go over the wire, with every text changed."""
    for message in data.root if data else []:
        for part in message.content:
            if part.type == "text":
                part.text = change(part.text)
    return data


def answerer(speaker, sampling: Sampling, system: str):
    """Gradio's function: a message and what was said before it -> the answer, growing."""
    asked = itertools.count(1)

    def answer(message: str, history: list[dict]) -> Iterator[list[dict]]:
        talk = said_so_far([] if speaker.completes else history, system)
        talk.ask(message)
        drawn, known = replace(sampling, seed=sampling.seed + next(asked)), ReplyStatus()
        notices: list[dict] = []
        text = ""

        def tell(what: str) -> None:
            notices.append(spoken(what) | {"metadata": {"title": NOTICE}})

        try:
            with contextlib.closing(stream_reply(speaker, talk.messages(), drawn, known, tell)) as pieces:
                for piece in pieces:
                    text += piece
                    yield [*notices, spoken(text)]
            if not text:
                tell("the model answered nothing")
            if known.ending == "length":
                tell("the answer is cut: its longest length is reached")
        except UserError as error:  # what there is of the answer is no part of the conversation
            tell(f"{text} … {error}" if text else str(error))
            text = ""
        yield [*notices, *([spoken(text)] if text else [])]

    return answer


def said_so_far(history: list[dict], system: str) -> Conversation:
    """Gradio's history without notices, and without the questions that only a notice answered."""
    talk = Conversation(system)
    question = None
    for message in history:
        if message["role"] == "user":
            question = text_of(message)
        elif question is not None and (message.get("metadata") or {}).get("title") != NOTICE:
            talk.ask(question)
            talk.answer(text_of(message))
            question = None
    return talk


def text_of(message: dict) -> str:
    """Gradio keeps a message as its text, or as a list of parts."""
    content = message["content"]
    parts = content if isinstance(content, list) else [content]
    return "".join(part if isinstance(part, str) else part.get("text", "") for part in parts)


def spoken(text: str) -> dict:
    return {"role": "assistant", "content": text}
