"""Chat on a web page, with Gradio: one model, or two side by side."""

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

from chat.body_limit import BodyLimit
from chat.compare import Corpus, Side, no_passages, side_by_side, with_titles
from chat.conversation import Conversation, Engine, ReplyStatus, Sampling, make_message
from inference.completions import strip_reasoning
from inference.retrieval import Chunk
from utils.errors import UserError

NOTICE = "Notice"  # the title of a message that is not the model's
COLUMN_PIXELS = 320  # of a model's column; two of them and their gap do not fit on a phone
CHATBOT = {"render_markdown": False, "show_label": False, "buttons": []}
PRIVATE = {"api_visibility": "private"}


@dataclass(frozen=True)
class WebSettings:
    """Settings of the page."""

    sampling: Sampling
    system: str  # system message
    titles: list[str]  # articles offered as example messages
    host: str
    port: int
    corpus: Corpus | None = None  # searched for every message of a comparison


def serve(sides: list[Side], settings: WebSettings) -> None:
    """Serve the page for one model, or for two side by side, until Ctrl-C. Raises UserError if Gradio is missing or the
    port is taken."""
    check_port(settings.host, settings.port)
    page = make_page(sides[0].engine, settings) if len(sides) == 1 else make_comparison_page(sides, settings)
    from starlette.middleware import Middleware  # Gradio's

    page.queue(default_concurrency_limit=min(side.engine.concurrency for side in sides))
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
        app_kwargs={"middleware": [Middleware(BodyLimit)]},
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
    return import_gradio().ChatInterface(
        fn=make_reply_function(engine, settings),
        chatbot=verbatim_chatbot()(**CHATBOT, height="70vh"),
        title="Chat",
        description=html.escape(describe(engine, Path(engine.name).name)),
        examples=example_messages(settings) or None,
        example_labels=settings.titles or None,
        save_history=True,
        flagging_mode="never",
        api_visibility="private",
    )


def describe(engine: Engine, label: str) -> str:
    return f"{label}{' (base model: continues your text)' if engine.is_base_model else ''}"


def example_messages(settings: WebSettings) -> list[str]:
    return [f'Tell me about the article "{title}".' for title in settings.titles]


def make_comparison_page(sides: list[Side], settings: WebSettings):
    """The page of a comparison: a column for each model, on narrow screens one below the other, and the passages found
    beneath. Conversations are stored in the open page only."""
    gradio = import_gradio()
    with gradio.Blocks(title="Chat: two models") as page:
        with gradio.Row():
            columns = []
            for side in sides:
                with gradio.Column(min_width=COLUMN_PIXELS):
                    # Above the chatbot, whose own label would cover the first message if it has two lines.
                    gradio.HTML(f'<h4 class="model">{html.escape(describe(side.engine, side.label))}</h4>')
                    columns.append(verbatim_chatbot()(**CHATBOT, height="50vh"))
        box = gradio.Textbox(
            placeholder="One message for both models", show_label=False, submit_btn=True, stop_btn=False
        )
        with gradio.Row():
            stop = gradio.Button("Stop", size="sm")
            reset = gradio.Button("New conversation", size="sm")
        passages = gradio.HTML(passages_html(settings.corpus, None))
        if settings.titles:
            examples = [[message] for message in example_messages(settings)]
            gradio.Examples(examples, [box], example_labels=settings.titles)
        asked = box.submit(
            make_comparison_function(sides, settings), [box, *columns], [box, *columns, passages], **PRIVATE
        )
        stop.click(None, cancels=[asked], **PRIVATE)
        empty = ("", *([] for _ in columns), passages_html(settings.corpus, None))
        clearing = [reset.click, *(column.clear for column in columns)]  # a column's bin, too, clears both
        gradio.on(clearing, lambda: empty, None, [box, *columns, passages], cancels=[asked], **PRIVATE)
    return page


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
    side = Side(engine, engine.name, Conversation(settings.system))
    counter = itertools.count(1)  # added to the seed

    def reply(message: str, history: list[dict]) -> Iterator[list[dict]]:
        sampling = replace(settings.sampling, seed=settings.sampling.seed + next(counter))
        yield from stream_messages(side, message, history, [], sampling)

    return reply


def make_comparison_function(sides: list[Side], settings: WebSettings):
    """Gradio's callback: a message and a history for each model -> an empty text box, the growing histories, and the
    passages."""
    counter = itertools.count(1)  # added to the seed

    def reply(message: str, *histories: list[dict]) -> Iterator[tuple]:
        if not message.strip():
            return
        sampling = replace(settings.sampling, seed=settings.sampling.seed + next(counter))
        passages = settings.corpus.search(message) if settings.corpus else []
        shown = passages_html(settings.corpus, passages)
        asked = [[*history, make_message("user", message)] for history in histories]
        yield "", *asked, shown
        with contextlib.ExitStack() as stack:
            streams = [
                stack.enter_context(contextlib.closing(stream_messages(side, message, history, passages, sampling)))
                for side, history in zip(sides, histories, strict=True)
            ]
            for latest in side_by_side(streams):
                yield "", *(history + (new or []) for history, new in zip(asked, latest, strict=True)), shown

    return reply


def stream_messages(
    side: Side, message: str, history: list[dict], passages: list[Chunk], sampling: Sampling
) -> Iterator[list[dict]]:
    """Yield the messages that answer `message` after Gradio's `history`, growing: notices, then the reply."""
    base = side.engine.is_base_model
    conversation = to_conversation([] if base else history, side.conversation.system)
    conversation.add_user(message)
    status, notices, text = ReplyStatus(), [], ""

    def notice(sentence: str) -> None:
        notices.append(make_message("assistant", sentence) | {"metadata": {"title": NOTICE}})

    pieces = replace(side, conversation=conversation).stream(passages, sampling, status, notice)
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
