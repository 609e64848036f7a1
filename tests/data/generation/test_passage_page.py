"""The page of passages in a real Chromium, if installed, and `inspect_entigraph.py --show`."""

import json
import shutil

import pytest

from data.generation import passage_page
from tasks.documents import load_task
from tests.chat.test_web import CHROMIUM, needs_browser
from tests.conftest import error_line, succeed
from utils import paths

QUEEN = "the Zanzibar Queen"
LOOP = "The lamp burned. " * 40
COPY = "The words of the source come now, unchanged. "


@pytest.fixture
def folder(home):
    """The shipped passages, and five with faults about the first article."""
    target = home / "passages"
    shutil.copytree(paths.example_dir() / "passages", target)
    document = load_task("example")[0]
    journal = target / f"{document.uid}.jsonl"
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    first = next(record for record in records if record["kind"] == "pair")
    texts = {
        "refused": "I'm sorry, but I cannot write about this <b>document</b>.",
        "looping": LOOP,
        "copied": COPY + " ".join(document.text.split()[:30]),
        "unsupported": "The keeper was Barnaby Quillfeather of Mombasa. He had 4812 cats, and so it was.",
        "duplicate": first["text"],
        "cut": "A reply that was cut in the mid",
    }
    for number, (name, text) in enumerate(texts.items()):
        reason = "length" if name == "cut" else "stop"
        records.append(first | {"id": f"zz{number}", "text": text, "finish_reason": reason, "entities": [name, QUEEN]})
    records[0]["entities"] += list(texts) + [QUEEN]
    journal.write_text("".join(json.dumps(record) + "\n" for record in records))
    return target


@pytest.fixture
def browser_page(folder):
    from playwright.sync_api import sync_playwright

    succeed("data/inspect_entigraph.py", "--task", "example", "--input", folder, "--html")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened, troubles = browser.new_page(viewport={"width": 1400, "height": 900}), []
        opened.on("request", lambda request: None if request.url.startswith("file:") else troubles.append(request.url))
        opened.on("console", lambda message: troubles.append(message.text))
        opened.on("pageerror", lambda error: troubles.append(str(error)))
        opened.goto(f"file://{paths.passage_page('example')}")
        opened.wait_for_selector(".pair")
        yield opened
        assert not [url for url in troubles if not url.startswith("data:")]
        browser.close()


@needs_browser
def test_page(browser_page, tmp_path):
    page, titles = browser_page, [document.title for document in load_task("example")]
    assert page.locator("nav button").count() == 12
    page.locator("#search").fill(titles[0][:12])
    assert page.locator("nav button").count() == 1
    page.locator("nav button").first.click()
    assert page.locator("h2").text_content() == titles[0]
    assert page.get_by_text("Not in the document:").text_content().endswith(QUEEN)
    # Filters: each fault by itself, with its mark.
    for flag in ("refused", "looping", "copied", "unsupported", "duplicate", "cut"):
        box = page.get_by_label(f"{flag} (")
        assert box.is_enabled(), flag
        box.check()
        page.locator(".list button").filter(has_text=f"{flag} · {QUEEN}").click()
        assert flag in page.locator("main > h3 .flag").all_text_contents()
        if flag == "refused":
            assert "<b>document</b>" in page.locator(".pair").inner_text()  # text, not markup
        if flag == "copied":
            assert page.locator("mark.c").nth(1).inner_text()
        if flag == "unsupported":
            assert "Mombasa" in page.locator(".pair mark.u").first.inner_text()
            assert "is not in the document" in page.locator(".pair mark.u").first.get_attribute("title")
        if flag == "duplicate":
            assert page.get_by_text("It repeats an earlier passage").is_visible()
            assert page.locator(".pair").count() == 2
        page.get_by_label(f"{flag} (").uncheck()
    # The graph: an entity filters, an edge opens its passage.
    every = page.locator(".list button").count()
    page.locator("svg g").first.click()
    assert 0 < page.locator(".list button").count() < every
    page.locator("svg g.on").click()
    assert page.locator(".list button").count() == every
    page.locator("svg line").nth(1).dispatch_event("click")
    assert page.locator("svg line.on").count() >= 1
    assert page.locator(".source mark.t").count() > 2
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


@needs_browser
def test_pages_of_a_large_corpus(folder, monkeypatch, browser_page):
    """Beyond MAX_BYTES: an index, and a page for each document."""
    monkeypatch.setattr(passage_page, "MAX_BYTES", 1000)
    groups = [(document, [folder / f"{document.uid}.jsonl"]) for document in load_task("example")]
    target = paths.passage_page("example")
    result = passage_page.write_page(target, "Many", groups, len(groups), None)
    assert result["pages"] == 13 and target.stat().st_size < 40_000
    browser_page.goto(f"file://{target}")
    browser_page.locator("nav button").nth(3).click()
    browser_page.wait_for_selector(".pair")
    assert browser_page.locator("h2").text_content() == groups[3][0].title


def test_more_passages_than_are_shown(folder, monkeypatch):
    monkeypatch.setattr(passage_page, "MAX_SHOWN", 12)
    monkeypatch.setattr(passage_page, "MIN_SHOWN", 3)
    groups = [(document, [folder / f"{document.uid}.jsonl"]) for document in load_task("example")]
    target = paths.passage_page("example")
    result = passage_page.write_page(target, "Few", groups, len(groups), None)
    assert (result["shown"], result["passages"]) == (36, 138)
    first = target.read_bytes()
    passage_page.write_page(target, "Few", groups, len(groups), None)
    assert target.read_bytes() == first


def test_show(folder, home):
    command = ("data/inspect_entigraph.py", "--task", "example", "--input", folder)
    out = succeed(*command, "--show", "0")
    assert any(line.startswith("not in the document, or paraphrased: ") and QUEEN in line for line in out.splitlines())
    assert "He had 4812 cats, and so it was. <<4812 is not in the document>>" in out
    assert "[duplicate]" in out and "  repeats " in out and "  source: " in out
    title = load_task("example")[0].title
    assert succeed(*command, "--show", title[:14].lower()) == out
    assert "--show nothing: 0 documents match" in error_line(*command, "--show", "nothing")
    assert QUEEN in succeed(*command)


ODD = [
    {"id": "1", "kind": "pair", "text": "</script><script>x</script> {{data}}", "entities": ["</script>", 7]},
    {"kind": "pair", "text": "No id, and no entities."},
    {"id": 3, "text": "No kind.", "usage": {"prompt_tokens": "many"}},
    {"id": "4", "kind": "entities", "entities": ["one", "__proto__", "</script>"]},
    {"id": "5", "kind": ["pair"], "text": {"a": 1}, "usage": 3},
]


@pytest.mark.parametrize("options", [("--html",), ("--show", "0"), ()])
def test_records_of_other_programs(options, home, tmp_path):
    folder = tmp_path / "<b>{{data}}"
    folder.mkdir()
    journal = folder / f"{load_task('example')[0].uid}.jsonl"
    journal.write_text("".join(json.dumps(record | {"finish_reason": "stop"}) + "\n" for record in ODD))
    out = succeed("data/inspect_entigraph.py", "--task", "example", "--input", folder, *options)
    assert "3 passages" in out or "3 of 3 passages" in out or json.loads(out.splitlines()[-1])["passages"] == 3
    if "--html" in options:
        page = paths.passage_page("example").read_text()
        assert page.count("<script") == page.count("</script>") == 2 and "<b>" not in page
