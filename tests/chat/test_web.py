"""interactive.py --web in a real Chromium, if installed (`apt-get install chromium`)."""

import contextlib
import shutil
import signal
import socket
import subprocess
import sys

import pytest

from tests.conftest import ROOT, error_line, free_port
from tests.fake_openai import FakeOpenAI

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
        opened.foreign = []
        opened.on("request", lambda r: None if "127.0.0.1" in r.url else opened.foreign.append(r.url))
        yield opened
        assert not opened.foreign  # nothing is fetched from other hosts
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
    from chat.web import NOTICE, to_conversation

    history = [
        {"role": "user", "content": [{"type": "text", "text": "too long"}]},
        {"role": "assistant", "content": "send a shorter one", "metadata": {"title": NOTICE}},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "turns are left out", "metadata": {"title": NOTICE}},
        {"role": "assistant", "content": [{"type": "text", "text": "hi"}], "metadata": None},
    ]
    assert to_conversation(history, "Be brief.").messages() == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi"},
    ]
