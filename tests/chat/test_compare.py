"""interactive.py --compare: two models, one message, and the passages found; in the terminal and on the page."""

import json
import shutil

import pytest

from chat import compare
from chat.conversation import Conversation, ReplyStatus, Sampling
from inference.retrieval import Chunk
from tests.chat.test_interactive import CTRL_C, Terminal, chat_model, piped
from tests.chat.test_web import ATTACK, Site, needs_browser, open_page, page
from tests.conftest import error_line
from tests.fake_openai import FakeOpenAI
from utils.errors import UserError

__all__ = ["chat_model", "page"]  # fixtures
QUESTION = "Who led the glassblowers' strike?"
EXAMPLE = ("--task", "example")


@pytest.fixture
def two(home):
    with FakeOpenAI(models=("trained", "base")) as server:
        yield server


def pair(server, *options) -> tuple:
    return ("--base_url", server.url, "--model", "trained", "--compare", "base", *options)


def test_both_reply_and_the_passages_stand_beneath(two):
    done = piped(f"{QUESTION}\nand then?", *pair(two, *EXAMPLE))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().split("\n")
    assert lines[0] == "── trained ──"
    assert lines[1].startswith("turn 1: Who led")
    assert lines[2] == "── base ──"
    assert lines[3].startswith("turn 1: Who led")
    assert lines[4] == "── passages ──"
    assert lines[5].startswith('"The Glassblowers\' Strike"')
    assert "strike" in lines[6].lower()
    assert [body["model"] for body in two.bodies] == ["trained", "base"] * 2
    assert two.bodies[0]["seed"] == two.bodies[1]["seed"] != two.bodies[2]["seed"]
    for body in two.bodies[2:]:  # each has its own reply in its history, and no passage
        assert [message["content"][:12] for message in body["messages"]] == [QUESTION[:12], "turn 1: Who ", "and then?"]


def test_without_a_corpus_it_says_how_to_name_one(two):
    done = piped(QUESTION, *pair(two))
    assert "── passages ──\nno passages: start with --task NAME or --corpus DIR" in done.stdout.decode()
    done = piped("xyzzy", *pair(two, *EXAMPLE))
    assert "no passage of example has a word of the message" in done.stdout.decode()


def test_open_book(two):
    """The same model twice; in the second prompt stand the passages that are shown, with this message only."""
    options = ("--base_url", two.url, "--model", "trained", "--compare", "open_book", *EXAMPLE)
    done = piped(f"{QUESTION}\nxyzzy", *options)
    assert done.returncode == 0, done.stderr
    shown = done.stdout.decode()
    assert "── trained, closed book ──" in shown
    assert "── trained, open book ──" in shown
    closed, opened, _, second = (body["messages"] for body in two.bodies)
    assert [message["content"] for message in closed] == [QUESTION]
    passage = shown.split("── passages ──\n")[1].split("\n\n")[0]
    assert passage in opened[-1]["content"]
    assert opened[-1]["content"].endswith(QUESTION)
    assert [message["content"] for message in second[::2]] == [QUESTION, "xyzzy"]


def test_own_corpus(two, tmp_path):
    (tmp_path / "lights").mkdir()
    (tmp_path / "lights/keeper.txt").write_text(
        "Odile Marn kept the light at Skarrow Head until the year of the flood."
    )
    done = piped("Who kept the light?", *pair(two, "--corpus", tmp_path / "lights"))
    assert done.returncode == 0, done.stderr
    assert "Odile Marn kept the light" in done.stdout.decode().split("── passages ──")[1]


def test_commands_in_the_terminal(two):
    terminal = Terminal("--base_url", two.url, "--model", "trained", *EXAMPLE)
    terminal.send("/compare")
    terminal.expect("no comparison; /compare MODEL")
    terminal.send("hello")
    terminal.expect("turn 1: hello")
    terminal.send("/compare nobody")
    terminal.expect("error: /compare nobody: the server lists base, trained")
    terminal.send("/compare trained")
    terminal.expect("error: /compare trained: the same model")
    terminal.send("/compare base")
    terminal.expect("comparing trained and base")
    terminal.send("and the strike?")
    terminal.expect(" base ")
    terminal.expect("turn 2: and the strike")  # it was given what was said
    terminal.expect(" passages ")
    terminal.expect("Glassblowers")
    terminal.send("/system Be brief.")
    terminal.expect("Be brief")
    terminal.send("/retry")
    terminal.expect(" trained ")
    terminal.expect("turn 2: and")
    terminal.expect(" base ")
    terminal.expect("turn 2: and")
    for body in two.bodies[-2:]:
        contents = [message["content"].strip() for message in body["messages"]]
        assert contents == ["Be brief.", "hello", "turn 1: hello", "and the strike?"]
    terminal.send("/compare -")
    terminal.expect("no comparison")
    terminal.send("alone")
    terminal.expect("turn 3: alone")
    assert terminal.quit() == 0
    assert two.bodies[-1]["model"] == "trained"


def test_saved_comparison_is_loaded_for_both(two, home):
    path = home / "talk.jsonl"
    done = piped(f"hello\n/save {path}\n/reset\n/load {path}\nmore", *pair(two))
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record["model"] for record in records] == ["trained", "base"]
    records[1]["messages"][1]["content"] = "the base model's reply"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    piped(f"/load {path}\nmore", *pair(two))
    replies = [body["messages"][1]["content"] for body in two.bodies[-2:]]
    assert replies == ["turn 1: hello ", "the base model's reply"]
    path.write_text(json.dumps({"messages": records[0]["messages"]}) + "\n")
    piped(f"/load {path}\nmore", *pair(two))
    assert two.bodies[-1]["messages"] == two.bodies[-2]["messages"]


def test_an_error_leaves_both_conversations_as_they_were(two):
    terminal = Terminal(*pair(two))
    terminal.send("hello")
    terminal.expect(" base ")
    terminal.expect(" passages ")
    terminal.send("die right here")
    terminal.expect("error: .*connection was lost.*/retry asks again")
    terminal.send("slow please")
    terminal.expect("word3 ")
    terminal.send("", CTRL_C)  # stops the first reply; the second begins
    terminal.expect(r"\[stopped\]")
    terminal.expect(" base ")
    terminal.expect("word3 ")
    terminal.send("", CTRL_C)
    terminal.expect(r"\[stopped\]")
    terminal.expect(" passages ")
    terminal.send("last")
    terminal.expect("turn 3: last")
    terminal.expect("turn 3: last")
    assert terminal.quit() == 0
    for body in two.bodies[-2:]:
        assert [message["content"] for message in body["messages"]][::2] == ["hello", "slow please", "last"]


def test_local_checkpoints_and_one_with_two_caches(home, chat_model, tiny_model):
    """Two checkpoints, one of them a base model; and closed against open book with the weights loaded once."""
    done = piped(QUESTION, "--model_path", chat_model, "--compare", tiny_model, "--max_tokens", 8)
    assert done.returncode == 0, done.stderr
    assert b"continues the text" in done.stderr
    assert done.stdout.decode().count("──\n") == 3
    from chat.local_engine import LocalEngine

    engine = LocalEngine(str(chat_model))
    twin = engine.with_own_cache()
    assert twin._model is engine._model
    messages = [[{"role": "user", "content": text}] for text in (QUESTION, "Something else?")]
    settings = Sampling(temperature=0, max_tokens=12)
    alone = ["".join(engine.stream(message, settings, ReplyStatus())) for message in messages]
    streams = [
        one.stream(message, settings, ReplyStatus()) for one, message in zip((engine, twin), messages, strict=True)
    ]
    pieces: list = [[], []]
    for index in (0, 1) * 20:
        pieces[index].append(next(streams[index], ""))
    assert ["".join(piece) for piece in pieces] == alone


def test_user_errors(home, two, chat_model):
    def error_for(*options):
        return error_line("interactive.py", *options)

    local = ("--model_path", chat_model)
    assert "--compare nowhere/at/all: no such folder" in error_for(*local, "--compare", "nowhere/at/all")
    assert "the same model on both sides" in error_for(*local, "--compare", f"{chat_model}/")
    (home / "link").symlink_to(chat_model)
    assert "the same model on both sides" in error_for(*local, "--compare", home / "link")
    assert "--task NAME or --corpus DIR" in error_for(*local, "--compare", "open_book")
    assert "--task nothing" in error_for(*local, "--compare", "open_book", "--task", "nothing")
    assert "add --articles or --compare MODEL" in error_for(*local, "--web", *EXAMPLE)
    assert "the server lists base, trained" in error_for("--base_url", two.url, "--model", "base", "--compare", "x")


def test_models_of_different_corpora_are_refused(home, chat_model):
    for name, task, base in (("a", "quality-raw", "x"), ("b", "example", "x"), ("tuned", "instruct", "ckpts/b")):
        shutil.copytree(chat_model, home / "ckpts" / name)
        record = {"arguments": {"task_name": task, "model_name": base}}
        (home / "ckpts" / name / "run.json").write_text(json.dumps(record))
    assert compare.trained_task("ckpts/tuned") == "example"
    assert compare.trained_task("ckpts/nowhere") is None
    line = error_line("interactive.py", "--model_path", "ckpts/a", "--compare", "ckpts/tuned")
    assert "ckpts/tuned was trained on example, ckpts/a on quality-raw" in line
    line = error_line("interactive.py", "--model_path", "ckpts/a", "--compare", "open_book", *EXAMPLE)
    assert "ckpts/a was trained on quality-raw, --task is example" in line
    compare.check_corpora("--compare", {"": "quality", "a": "quality-raw", "b": "quality", "c": None})


def test_memory_notice(home, chat_model, monkeypatch):
    from chat import local_engine

    assert local_engine.memory_notice(str(chat_model)) is None
    monkeypatch.setattr(local_engine, "free_memory", lambda: 1000)
    notice = local_engine.memory_notice(str(chat_model))
    assert "its weights take" in notice
    assert "may not fit" in notice
    assert local_engine.memory_notice("organisation/on-the-hub") is None


class CountingEngine:
    """A context of 100 tokens, one per character; replies with its prompt."""

    name, context, is_base_model, concurrency = "counting", 100, True, 1

    def count_tokens(self, messages):
        return sum(len(message["content"]) for message in messages)

    def stream(self, messages, sampling, status):
        yield messages[-1]["content"]


def test_as_many_passages_as_fit():
    passages = [Chunk("a", 0, "A", "x" * 30), Chunk("b", 0, "B", "y" * 30)]
    conversation = Conversation()
    conversation.add_user("Question?")
    side = compare.Side(CountingEngine(), "counting", conversation, open_book=True)
    settings = {"sampling": Sampling(max_tokens=10), "status": ReplyStatus(), "notice": print}
    assert "".join(side.stream(passages, **settings)) == f"A\n{'x' * 30}\n\nB\n{'y' * 30}\n\nQuestion?"
    conversation.turns[-1]["content"] = "Question? " * 4
    assert "".join(side.stream(passages, **settings)) == f"A\n{'x' * 30}\n\n{'Question? ' * 4}"
    conversation.turns[-1]["content"] = "Question? " * 8
    assert "".join(side.stream(passages, **settings)) == "Question? " * 8


def test_titles_are_not_repeated():
    passages = [
        Chunk("a", 0, "A", "one"),
        Chunk("a", 1, "A", "two"),
        Chunk("b", 0, "B", "three"),
        Chunk("a", 2, "A", "4"),
    ]
    assert compare.format_passages(passages) == "A\none\n\ntwo\n\nB\nthree\n\nA\n4"


def test_items_of_both_streams_in_turn():
    steps = list(compare.side_by_side([iter("ab"), iter("xyz")]))
    assert steps == [["a", None], ["a", "x"], ["b", "x"], ["b", "y"], ["b", "z"]]


def test_loading_half_a_comparison_changes_nothing(tmp_path):
    path = tmp_path / "t.jsonl"
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path.write_text(json.dumps({"model": "x", "messages": messages}) + '\n{"model": "y", "messages": []}\n')
    sides = [compare.Side(CountingEngine(), "x", Conversation()) for _ in range(2)]
    with pytest.raises(UserError, match=r"t\.jsonl"):
        compare.load_sides(path, sides)
    assert sides[0].conversation.turns == []


def boxes(page) -> list[dict]:
    return [column.bounding_box() for column in page.locator("[aria-label='chatbot conversation']").all()]


def send(page, text: str) -> None:
    box = page.locator("textarea").first
    box.fill(text)
    box.press("Enter")


@needs_browser
@pytest.mark.parametrize(("width", "height"), [(1400, 900), (400, 800)])
def test_page(page, tmp_path, width, height):
    """Two columns on a wide screen, one below the other on a narrow one, and the passages beneath both."""
    with Site("--model", "trained", "--compare", "base", *EXAMPLE, models=("trained", "base")) as site:
        page.set_viewport_size({"width": width, "height": height})
        open_page(page, site)
        page.get_by_text("will be shown here").wait_for()
        send(page, QUESTION)
        page.locator(".passages").wait_for()
        page.get_by_text("turn 1: Who led").nth(1).wait_for()
        assert page.locator("textarea").first.input_value() == ""
        left, right = boxes(page)
        passages = page.locator(".passages").bounding_box()
        if width == 1400:
            assert abs(left["y"] - right["y"]) < 5
            assert left["x"] + left["width"] <= right["x"]
        else:
            assert left["y"] + left["height"] <= right["y"]
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert passages["y"] >= max(left["y"] + left["height"], right["y"] + right["height"])
        labels = page.locator(".model").all()
        assert [label.inner_text().strip() for label in labels] == ["trained", "base"]
        assert labels[0].bounding_box()["y"] + labels[0].bounding_box()["height"] <= left["y"]
        assert "The Glassblowers' Strike" in page.locator(".passages").inner_text()
        page.screenshot(path=tmp_path / f"compare-{width}.png", full_page=True)
        send(page, "and then?")
        page.get_by_text("turn 2: and then?").nth(1).wait_for()
        for body in site.model.bodies[-2:]:
            assert [message["content"] for message in body["messages"]][::2] == [QUESTION, "and then?"]
        page.get_by_text("New conversation").click()
        page.get_by_text("will be shown here").wait_for()
        send(page, "again")
        page.get_by_text("turn 1: again").nth(1).wait_for()


@needs_browser
def test_page_shows_texts_verbatim_and_stops(page):
    with Site("--model", "trained", "--compare", "base", models=("trained", "base")) as site:
        open_page(page, site)
        send(page, ATTACK)
        page.get_by_text("turn 1:").nth(1).wait_for()
        page.get_by_text("start with --task NAME").wait_for()
        assert page.evaluate("window.hacked") is None
        assert page.locator("img[src=x], .message b, .message script").count() == 0
        send(page, "slow please")
        page.get_by_text("word5 ").nth(1).wait_for()  # both at once
        page.get_by_role("button", name="Stop", exact=True).click()
        page.wait_for_timeout(500)
        send(page, "refuse this")
        page.get_by_text("the server returned status 500").nth(1).wait_for()
        send(page, "next")
        page.get_by_text("turn 3: next").nth(1).wait_for()
        contents = [message["content"] for message in site.model.bodies[-1]["messages"]]
        assert contents[-3:-2] == ["slow please"]
        assert "word100 " not in contents[-2]
