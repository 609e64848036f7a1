"""interactive.py --web in a real Chromium, if installed (`apt-get install chromium`)."""

import contextlib
import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT, error_line, free_port, succeed
from tests.fake_openai import FakeOpenAI
from utils import paths
from utils.io import write_json

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(not CHROMIUM, reason="no Chromium: apt-get install chromium")
ATTACK = '<img src=x onerror="window.hacked=1"><script>window.hacked=2</script><b>bold</b> **stars**'


def is_reachable(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex((host, port)) == 0


class Site:
    """interactive.py --web on a streaming server."""

    def __init__(self, *options, **server):
        self.options, self.model = options, FakeOpenAI(**server)

    def __enter__(self) -> "Site":
        self.model.__enter__()
        self.port = free_port()
        address = ("--base_url", self.model.url, "--port", str(self.port))
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "interactive.py"), "--web", *address, *self.options],
            stderr=subprocess.PIPE,
            text=True,
        )
        lines = iter(self.process.stderr.readline, "")
        assert any(f":{self.port}/" in line for line in lines)  # printed once it listens
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.model.__exit__()


@pytest.fixture
def page(home, tmp_path):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1200, "height": 800})
        opened.set_default_timeout(20_000)
        opened.foreign, opened.errors = [], []
        opened.on("console", lambda message: opened.errors.append(message.text) if message.type == "error" else None)
        opened.on("pageerror", lambda error: opened.errors.append(str(error)))
        opened.on("request", lambda r: None if "127.0.0.1" in r.url else opened.foreign.append(r.url))
        yield opened
        assert not opened.foreign  # nothing is fetched from other hosts
        assert not [text for text in opened.errors if "status of 400" not in text]  # 400: a test's bad request
        browser.close()


def open_page(page, site: Site) -> None:
    page.goto(f"http://127.0.0.1:{site.port}/")
    page.wait_for_selector("textarea")


def send_message(page, text: str, until: str) -> None:
    """Send a message and wait for the text `until`."""
    box = page.locator("textarea").first
    box.fill(text)
    box.press("Enter")
    page.get_by_text(until).first.wait_for()
    page.locator("button.stop-button").wait_for(state="hidden")


def reopen_conversation(page, title: str, until: str) -> None:
    """Click an earlier conversation, repeatedly until the page is ready for it."""
    from playwright.sync_api import TimeoutError

    for _ in range(5):
        page.get_by_text(title).first.click()
        with contextlib.suppress(TimeoutError):
            return page.get_by_text(until).first.wait_for(timeout=4000)
    raise AssertionError(f"{title} cannot be opened again")


@needs_browser
def test_conversation(page, tmp_path):
    with Site() as site:
        open_page(page, site)
        send_message(page, "hello there", "turn 1: hello there")
        send_message(page, "and then?", "turn 2: and then?")
        contents = [m["content"] for m in site.model.bodies[-1]["messages"]]
        assert contents == ["hello there", "turn 1: hello there ", "and then?"]
        page.screenshot(path=tmp_path / "page.png")
        assert (tmp_path / "page.png").stat().st_size > 5000
        page.reload()
        reopen_conversation(page, "hello there", "turn 2: and then?")  # the browser kept it
        send_message(page, "third", "turn 3: third")
        other = page.context.browser.new_context().new_page()  # another visitor
        open_page(other, site)
        other.wait_for_timeout(500)
        assert "hello there" not in other.content()
        send_message(other, "me too", "turn 1: me too")


@needs_browser
def test_html_is_shown_verbatim(page):
    with Site() as site:
        open_page(page, site)
        send_message(page, ATTACK, "turn 1:")
        page.wait_for_timeout(300)
        assert page.evaluate("window.hacked") is None
        shown = page.locator(".message").all_inner_texts()
        assert any(ATTACK in text for text in shown)  # the user's message, verbatim
        assert any(ATTACK[:40] in text and "turn 1" in text for text in shown)
        send_message(page, f"refuse {ATTACK}", "the server returned status 500")  # the notice quotes the server's HTML
        page.reload()
        reopen_conversation(page, "onerror", "turn 1:")
        page.wait_for_timeout(300)
        assert page.evaluate("window.hacked") is None
        assert page.locator("img[src=x], .message b, .message script").count() == 0


@needs_browser
def test_notices(page):
    """Too long a message, a lost connection and a stopped reply give notices; the conversation continues."""
    with Site(max_bytes=3000) as site:
        open_page(page, site)
        send_message(page, "hello", "turn 1: hello")
        send_message(page, "x" * 4000, "send a shorter message")
        send_message(page, "die right here", "connection was lost")
        send_message(page, "still here", "turn 2: still here")
        assert [m["content"] for m in site.model.bodies[-1]["messages"]][::2] == ["hello", "still here"]
        box = page.locator("textarea").first
        box.fill("slow please")
        box.press("Enter")
        page.get_by_text("word5 ").first.wait_for()
        page.locator("button.stop-button").click()
        page.wait_for_timeout(500)
        send_message(page, "next", "turn 4: next")
        assert "word100 " not in site.model.bodies[-1]["messages"][-2]["content"]
        send_message(page, "long " * 590, "were dropped")


@needs_browser
def test_articles_to_click(page):
    with Site("--articles", "--task", "example") as site:
        open_page(page, site)
        page.get_by_text("The Glassblowers' Strike").click()
        page.get_by_text("turn 1: Tell me about").first.wait_for()
    question = site.model.bodies[-1]["messages"][-1]["content"]
    assert question == 'Tell me about the article "The Glassblowers\' Strike".'


def test_web_listens_on_loopback_by_default(home):
    with Site() as site:
        assert not is_reachable("127.0.0.2", site.port)
        site.process.send_signal(signal.SIGINT)
        assert site.process.wait(20) == 0
    with Site("--host", "0.0.0.0") as site:
        assert is_reachable("127.0.0.2", site.port)


def test_taken_port_is_reported(home):
    with FakeOpenAI() as server, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = error_line("interactive.py", "--web", "--base_url", server.url, "--port", port)
    assert f"--port {port}" in line


def test_notices_are_not_part_of_the_history():
    from chat.replies import to_conversation

    history = [
        {"role": "user", "content": "too long"},
        {"role": "notice", "content": "send a shorter one"},
        {"role": "user", "content": "hello"},
        {"role": "notice", "content": "turns are left out"},
        {"role": "assistant", "content": "hi"},
    ]
    assert to_conversation(history, "Be brief.").messages() == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi"},
    ]


def write_quality(home, number: int) -> None:
    lines = [
        {
            "title": f"Title {index:03}",
            "article": f"Text of {index}.\n\n第二段 🙂",
            "article_id": str(index),
            "questions": [],
        }
        for index in range(number)
    ]
    folder = home / "data" / "dataset" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "many.jsonl").write_text("\n".join(map(json.dumps, lines)))


def is_in_view(page, locator) -> bool:
    box, size = locator.bounding_box(), page.viewport_size
    return bool(box) and box["y"] >= 0 and box["y"] + box["height"] <= size["height"]


@needs_browser
def test_many_articles(page, home, tmp_path):
    """The list opens at its beginning, in the corpus's order, and can be filtered; a click begins a conversation that
    is kept, with the article beside it."""
    write_quality(home, 265)
    with Site("--articles", "--task", "many") as site:
        open_page(page, site)
        titles = page.locator("#titles button")
        assert titles.all_inner_texts() == [f"Title {index:03}" for index in range(265)]
        assert is_in_view(page, titles.first)
        page.get_by_label("Filter titles").fill("title 26")
        assert titles.all_inner_texts() == [f"Title {index}" for index in range(260, 265)]
        page.get_by_label("Filter titles").fill("no such")
        page.get_by_text("no title has these words").wait_for()
        page.get_by_label("Filter titles").fill("264")
        titles.first.click()
        page.get_by_text("turn 1: Tell me about").wait_for()
        page.get_by_text("Text of 264.").wait_for()
        page.get_by_text("第二段 🙂").wait_for()
        page.screenshot(path=tmp_path / "article.png")
        page.locator("button.stop-button").wait_for(state="hidden")
        page.reload()
        page.get_by_text("turn 1: Tell me about").wait_for()
        page.get_by_text("Text of 264.").wait_for()
        page.get_by_role("button", name="Close").click()
        page.get_by_text("Text of 264.").wait_for(state="hidden")
        send_message(page, "and?", "turn 2: and?")
        page.get_by_title("Delete this conversation").click()
        assert page.locator("#history li").count() == 0


@needs_browser
def test_on_a_phone(page, home):
    write_quality(home, 265)
    with Site("--articles", "--task", "many") as site:
        page.set_viewport_size({"width": 400, "height": 800})
        open_page(page, site)
        box = page.locator("textarea").first
        send_message(page, "long " * 200, "turn 1: long")
        send_message(page, "long " * 200, "turn 2: long")
        assert is_in_view(page, box)
        assert not page.locator("#side").is_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        page.get_by_label("Articles and earlier conversations").click()
        page.get_by_text("Title 007").click()
        page.get_by_text("Text of 7.").wait_for()
        assert not page.locator("#side").is_visible()
        page.get_by_text("turn 1: Tell me about").wait_for()
        assert is_in_view(page, box)


@needs_browser
def test_markdown_and_copy(page):
    reply = (
        "## A heading\n\n- one **bold**\n- `x < 1 & y`\n\n"
        "![pixel](http://example.com/p.png) [link](https://example.com) [bad](javascript:alert(1))"
    )
    with Site(pieces=[reply]) as site:
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        open_page(page, site)
        send_message(page, "**mine**", "A heading")
        reply_box = page.locator(".assistant .text")
        assert reply_box.locator("h2").inner_text() == "A heading"
        assert reply_box.locator("li").count() == 2 and reply_box.locator("strong").inner_text() == "bold"
        assert reply_box.locator("code").inner_text() == "x < 1 & y"
        assert reply_box.locator("img").count() == 0
        links = reply_box.locator("a").evaluate_all("all => all.map(one => one.href + ' ' + one.rel)")
        assert "https://example.com/ noopener noreferrer" in links and not any("javascript" in link for link in links)
        assert page.locator(".user").inner_text() == "**mine**"  # as typed
        page.get_by_role("button", name="Copy").click()
        page.get_by_text("Copied").wait_for()
        assert page.evaluate("navigator.clipboard.readText()").strip() == reply


@needs_browser
def test_temperature_and_system_message(page):
    with Site("--temperature", "0.3", "--system", "Be brief.") as site:
        open_page(page, site)
        assert not page.locator("#system").is_visible()  # folded
        send_message(page, "one", "turn 1: one")
        page.get_by_text("Temperature and system message").click()
        page.locator("#system").fill("Be long.")
        page.locator("#temperature").fill("1.5")
        send_message(page, "two", "turn 2: two")
        page.locator("#temperature").fill("9")
        send_message(page, "three", "a number from 0 to 5")
    first, second = site.model.bodies
    assert (first["temperature"], first["messages"][0]["content"]) == (0.3, "Be brief.")
    assert (second["temperature"], second["messages"][0]["content"]) == (1.5, "Be long.")


@needs_browser
def test_passages_of_the_corpus(page, home):
    """The Data tab shows the page of inspect_entigraph.py --html, or the command that writes it."""
    with Site("--articles", "--task", "example") as site:
        open_page(page, site)
        page.get_by_role("button", name="Data").click()
        page.get_by_text("python data/inspect_entigraph.py --task example --html").wait_for()
    succeed("data/inspect_entigraph.py", "--task", "example", "--input", str(ROOT / "data/example/passages"), "--html")
    with Site("--articles", "--task", "example") as site:
        open_page(page, site)
        page.get_by_role("button", name="Data").click()
        frame = page.frame_locator("iframe")
        frame.get_by_text("The Glassblowers' Strike").first.click()
        frame.get_by_role("heading", name="The Glassblowers' Strike").wait_for()
        page.get_by_role("button", name="Chat").click()
        send_message(page, "still here", "turn 1: still here")


def test_checkpoint_in_the_title(home):
    """The page's first lines: the checkpoint, its corpus, and its accuracy with an interval; nothing of older weights."""
    import interactive

    checkpoint = home / "ckpts" / "example-lr1"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"x")
    write_json(checkpoint / "run.json", {"arguments": {"task_name": "example"}})
    question = {
        "id": "q",
        "question": "?",
        "options": list("abcd"),
        "gold": 0,
        "hard": False,
        "answer": 0,
        "attempts": [],
    }
    metrics = {"accuracy": 0.75, "ci95": [0.5, 0.9], "n": 4}
    documents = [{"uid": str(n), "questions": [question | {"answer": int(n == 3)}]} for n in range(4)]
    protocol = {"task": "example", "weights": paths.weights_state("ckpts/example-lr1")}
    file = paths.evaluation_file("ckpts/example-lr1")
    file.parent.mkdir(exist_ok=True)
    write_json(file, {"protocol": protocol, "metrics": metrics, "documents": documents})
    told = interactive.describe_checkpoint("ckpts/example-lr1")
    assert re.fullmatch(
        r"trained on example; closed book on example: accuracy 75\.0% \(.+ to .+\) of 4 questions", told
    )
    (checkpoint / "model.safetensors").write_bytes(b"xy")  # trained again
    assert interactive.describe_checkpoint("ckpts/example-lr1") == "trained on example"
    assert interactive.describe_checkpoint("gpt-4") == ""


def post(port: int, body: bytes, **headers: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request("POST", "/reply", body, {"content-type": "application/json"} | names)
    return connection.getresponse().status


def test_requests_that_the_page_does_not_send(home):
    good = {"message": "hi", "histories": [[]], "temperature": 0, "system": ""}
    with Site() as site:
        assert post(site.port, json.dumps(good).encode()) == 200
        assert post(site.port, json.dumps(good).encode(), content_type="text/plain") == 415  # a form of another site
        assert post(site.port, json.dumps(good).encode(), host="evil.example") == 400  # a name that points here
        changes = (
            {"histories": []},
            {"histories": [[1]]},
            {"histories": 3},
            {"temperature": "x"},
            {"message": " "},
            {"histories": [[{"role": "system", "content": "x"}]]},
        )
        bodies = [json.dumps(good | change).encode() for change in changes]
        for bad in (b"", b"[1]", b"\xff", b"[" * 100_000, *bodies):
            assert post(site.port, bad) == 400
        connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=20)
        paths = [("GET", path) for path in ("/articles/0", "/data/../../etc/passwd", "/data/x.html", "/data/")]
        for method, path in [*paths, ("POST", "/gradio_api/upload"), ("POST", "/upload")]:
            connection.request(method, path, b"x")
            response = connection.getresponse()
            assert response.status == 404, path
            response.read()


@needs_browser
def test_two_tabs_keep_each_others_conversations(page):
    with Site() as site:
        tabs = page.context.browser.new_context()  # of one visitor
        page, other = tabs.new_page(), tabs.new_page()
        open_page(page, site)
        open_page(other, site)
        for tab, question in ((page, "first tab question"), (other, "second tab question")):
            send_message(tab, question, f"turn 1: {question}")
        stored = "Object.values(localStorage).map(JSON.parse).flat().map(one => one.title)"
        assert sorted(other.evaluate(stored)) == ["first tab question", "second tab question"]
        other.get_by_title("Delete this conversation").first.click()
        assert other.evaluate(stored) == ["first tab question"]
        page.reload()
        page.locator("#history").get_by_text("first tab question").wait_for()


@needs_browser
def test_a_store_that_was_damaged_is_read_as_far_as_possible(page):
    with Site() as site:
        open_page(page, site)
        send_message(page, "a question", "turn 1: a question")
        key = page.evaluate("Object.keys(localStorage)[0]")
        page.evaluate(
            "key => localStorage.setItem(key, JSON.stringify([null, 3, ...JSON.parse(localStorage[key])]))", key
        )
        page.reload()
        page.locator("#history").get_by_text("a question").wait_for()


def test_visitors_take_turns(home):
    """Of a model that makes one reply at a time: the second visitor is told to wait; who leaves makes room."""
    import asyncio

    from chat.compare import Side
    from chat.conversation import Conversation, Sampling
    from chat.replies import Request, stream_lines

    class Slow:
        name, context, is_base_model, concurrency, closed = "slow", 1 << 20, False, 1, 0

        def count_tokens(self, messages):
            return 1

        def stream(self, messages, sampling, status):
            try:
                for number in range(1000):
                    time.sleep(0.02)
                    yield f"word{number} "
            finally:
                self.closed += 1

    engine = Slow()
    sides = [Side(engine, "slow", Conversation())]
    asked = Request("hi", [[]], Sampling(), "")

    async def visit():
        turns = asyncio.Semaphore(1)
        first, second = (stream_lines(asked, sides, None, turns) for _ in range(2))
        assert "word0" in json.loads(await anext(first))["text"]
        assert json.loads(await anext(second)) == {"waiting": True}
        await first.aclose()
        assert engine.closed == 1
        assert "word0" in json.loads(await anext(second))["text"]
        await second.aclose()

    asyncio.run(visit())
    assert engine.closed == 2
