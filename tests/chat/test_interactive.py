"""interactive.py in a terminal and with a pipe."""

import json
import os
import re
import subprocess
import sys
import time

import pexpect
import pytest
from transformers import AutoTokenizer

from chat.conversation import Conversation, drop_oldest_turns
from tests.conftest import ROOT, error_line, succeed
from tests.fake_openai import FakeOpenAI
from utils import chat_template
from utils.errors import UserError

CTRL_C, CTRL_D, ALT_ENTER, UP = "\x03", "\x04", "\x1b\r", "\x1b[A"


@pytest.fixture(scope="module")
def chat_model(tiny_llama, tmp_path_factory):
    """The tiny Llama with a chat template."""
    import shutil

    folder = tmp_path_factory.mktemp("chat") / "tiny-chat"
    shutil.copytree(tiny_llama, folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    chat_template.set_template(tokenizer, None, "")
    tokenizer.save_pretrained(folder)
    return folder


def piped(text: str | bytes, *options, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / "interactive.py"), *map(str, options)],
        input=text if isinstance(text, bytes) else text.encode(),
        capture_output=True,
        env=os.environ | environment,
        timeout=120,
    )


class Terminal:
    """interactive.py on a pseudo-terminal of 100 columns."""

    def __init__(self, *options):
        self.process = pexpect.spawn(
            sys.executable,
            [str(ROOT / "interactive.py"), *map(str, options)],
            dimensions=(40, 100),
            timeout=20,
            env=os.environ | {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"},
        )
        self.process.delaybeforesend = 0.05
        self.expect("Ctrl-D quits")
        self.expect(">")

    def send(self, text: str, end: str = "\r") -> None:
        self.process.send(text + end)

    def expect(self, pattern: str) -> str:
        self.process.expect(pattern)
        return self.process.match.group().decode()

    def quit(self) -> int:
        self.send("", CTRL_D)
        self.process.expect(pexpect.EOF)
        self.process.close()
        return self.process.exitstatus


@pytest.fixture
def terminal(home, server):
    opened = Terminal("--base_url", server.url)
    yield opened
    opened.process.close(force=True)


def test_conversation_remembers(terminal, server):
    terminal.send("hello there")
    terminal.expect("turn 1: hello there")
    terminal.send("and then?")
    terminal.expect("turn 2: and then")
    contents = [m["content"] for m in server.bodies[-1]["messages"]]
    assert contents == ["hello there", "turn 1: hello there ", "and then?"]
    terminal.send("/reset")
    terminal.expect("new conversation")
    terminal.send("again")
    terminal.expect("turn 1: again")
    assert terminal.quit() == 0


def test_commands(terminal, server, home):
    terminal.send("/help")
    terminal.expect("/temperature")
    terminal.send("/nonsense")
    terminal.expect("error: there is no /nonsense")
    terminal.send("/system Be brief.")
    terminal.expect("system message: Be brief")
    terminal.send("/temperature 0.25")
    terminal.expect("temperature: 0.25")
    terminal.send("/temperature warm")
    terminal.expect("error: /temperature warm")
    terminal.send("/retry")
    terminal.expect("error: no message to send again")
    terminal.send("/speed")
    terminal.expect("on")
    terminal.send("hello")
    terminal.expect("turn 1: hello")
    terminal.expect(r"\[\d+ tokens, [\d.]+ tokens/s\]")
    body = server.bodies[-1]
    assert body["temperature"] == 0.25
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    terminal.send("/retry")
    terminal.expect("turn 1: hello")
    assert server.bodies[-1]["messages"] == body["messages"]
    assert server.bodies[-1]["seed"] != body["seed"]
    terminal.send(f"/save {home}/talk.jsonl")
    terminal.expect("saved: ")
    terminal.send(f"/save {home}/talk.jsonl")
    terminal.expect("error: .*exists already")
    terminal.send("/reset")
    terminal.expect("new conversation")
    terminal.send("/system -")
    terminal.expect("system message: none")
    terminal.send(f"/load {home}/talk.jsonl")
    terminal.expect("1 turns")
    terminal.send("more")
    terminal.expect("turn 2: more")
    assert server.bodies[-1]["messages"][0]["content"] == "Be brief."
    terminal.send("/load nowhere.jsonl")
    terminal.expect("error: nowhere.jsonl")
    terminal.send("/quit")
    terminal.process.expect(pexpect.EOF)


def test_saved_conversation_can_be_tokenized(home, tiny_llama):
    conversation = Conversation("Be brief.")
    conversation.add_user("a")
    conversation.add_assistant("b")
    conversation.save(home / "talk.jsonl")
    files = ("--jsonl", home / "talk.jsonl", "--test_jsonl", home / "talk.jsonl")
    out = succeed("data/tokenize_instruct.py", *files, "--tokenizer", tiny_llama)
    assert "1 conversations" in out


def test_ctrl_c_stops_the_reply_and_not_the_program(terminal, server):
    terminal.send("slow please")
    terminal.expect("word5 ")
    terminal.send("", CTRL_C)
    terminal.expect(r"\[stopped\]")
    terminal.send("go on")
    terminal.expect("turn 2: go on")
    kept = server.bodies[-1]["messages"][1]["content"]
    assert kept.startswith("word0 word1 ")
    assert "word100 " not in kept
    terminal.send("half a mess", CTRL_C)
    terminal.expect("Ctrl-D quits")
    terminal.send("whole")
    terminal.expect("turn 3: whole")
    assert terminal.quit() == 0


def test_arrow_keys_recall_earlier_messages(terminal, home, server):
    for text in ("first", "second"):
        terminal.send(text)
        terminal.expect(f"turn .: {text}")
    terminal.send(UP + UP)
    terminal.expect("turn 3: first")
    assert terminal.quit() == 0
    again = Terminal("--base_url", server.url)  # the history outlives the program
    again.send(UP)
    again.expect("turn 1: first")
    assert again.quit() == 0


def test_several_lines(terminal, server):
    terminal.send("one", ALT_ENTER)
    terminal.send("two")
    terminal.expect("turn 1: one two")
    assert server.bodies[-1]["messages"][-1]["content"] == "one\ntwo"
    terminal.send("\x1b[200~pasted\nlines\n/reset\nare one message\x1b[201~")
    terminal.expect("turn 2: pasted")
    assert server.bodies[-1]["messages"][-1]["content"] == "pasted\nlines\n/reset\nare one message"
    terminal.send("ends with \\")
    terminal.send("more")
    terminal.expect("turn 3: ends with more")
    assert server.bodies[-1]["messages"][-1]["content"] == "ends with \nmore"


def test_message_of_a_hundred_kilobytes(terminal, server):
    text = "word " * 20_000
    terminal.process.delaybeforesend = 0
    terminal.process.send(f"\x1b[200~{text}\x1b[201~")
    terminal.send("")
    terminal.process.timeout = 60
    terminal.expect("turn 1: word word")
    assert server.bodies[-1]["messages"][-1]["content"] == text.strip()


def test_bytes_that_are_not_utf8(terminal, server):
    terminal.process.send(b"caf\xe9 \xff ol\xc3\xa9\r")
    terminal.expect("turn 1: caf")
    assert server.bodies[-1]["messages"][-1]["content"] == "caf� � olé"
    terminal.send("fine")
    terminal.expect("turn 2: fine")


@pytest.mark.parametrize("failure", ["die", "unended", "refuse"])
def test_server_that_fails_during_a_reply(terminal, server, failure):
    terminal.send("hello")
    terminal.expect("turn 1: hello")
    terminal.send(f"{failure} now")
    line = terminal.expect("error: [^\r]*")
    assert ("connection was lost" in line) == (failure == "die")
    terminal.send("still here")
    terminal.expect("turn 2: still here")
    contents = [m["content"] for m in server.bodies[-1]["messages"]]
    assert contents == ["hello", "turn 1: hello ", "still here"]


def test_failed_retry_keeps_the_earlier_reply(terminal, server):
    terminal.send("hello")
    terminal.expect("turn 1: hello")
    server.broken = True
    terminal.send("/retry")
    terminal.expect("error: ")
    server.broken = False
    terminal.send("more")
    terminal.expect("turn 2: more")


def test_invalid_file_names(terminal):
    terminal.send("hello")
    terminal.expect("turn 1: hello")
    for command in ("save", "load"):
        for name in ("~nosuchuser/x/y", "x" * 300, "/etc/hostname/x", "/proc/x"):
            terminal.send(f"/{command} {name}")
            terminal.expect("error: ")
    terminal.send("still here")
    terminal.expect("turn 2: still here")


def test_searching_the_history(terminal, server):
    terminal.send("hello world")
    terminal.expect("turn 1: hello world")
    terminal.send("other")
    terminal.expect("turn 2: other")
    terminal.send("\x12", "hel")
    terminal.send("")
    terminal.send("")
    terminal.expect("turn 3: hello world")


def test_odd_stream_pieces(terminal, server):
    """Surrogate pairs split over two pieces, escape sequences in an error, and an empty reply."""
    server.pieces = ["a \ud83d", "\ude00 b"]
    terminal.send("emoji")
    terminal.expect(r"a \? ?\? b|a \?\? b")
    server.pieces = []
    terminal.send("nothing")
    terminal.expect("no reply")
    server.pieces = None
    terminal.send("refuse")
    line = terminal.expect("error: [^\r]*")
    assert "\x1b" not in line
    terminal.send("fine")
    terminal.expect("turn 2: fine")


def test_retry_repeats_the_failed_message(terminal, server):
    terminal.send("die right here")
    terminal.expect("error: ")
    terminal.send("/retry")
    terminal.expect("error: ")
    assert [m["content"] for m in server.bodies[-1]["messages"]] == ["die right here"]


def test_control_characters_of_a_reply_are_removed(terminal):
    terminal.send("\x1b[200~a\x1b[31mred\x1b[201~")  # the server repeats it
    terminal.expect("turn 1: a")
    assert b"\x1b[31mred" not in terminal.process.before + terminal.process.after


def test_whole_turns_are_dropped_from_a_full_context(home):
    with FakeOpenAI(max_model_len=200) as server:
        done = piped("\n".join(f"message {n} " + "x" * 150 for n in range(4)), "--base_url", server.url)
    assert done.returncode == 0
    assert done.stderr.decode().count("the oldest") >= 1
    contents = [m["content"][:9] for m in server.bodies[-1]["messages"]]
    assert contents[-1] == "message 3"
    assert contents[0].startswith("message")
    assert len(contents) % 2 == 1


def test_server_with_a_shorter_context_than_estimated(home):
    """Older turns are dropped until the server accepts the prompt; a message that is too long by itself is an error."""
    with FakeOpenAI(max_bytes=400) as server:
        done = piped("\n".join(f"message {n} " + "x" * 100 for n in range(4)), "--base_url", server.url)
        assert done.returncode == 0, done.stderr
        assert b"turns were dropped" in done.stderr
        done = piped("x" * 1000, "--base_url", server.url)
        assert done.returncode == 2
        assert b"send a shorter message" in done.stderr


def test_max_tokens_are_limited_to_the_servers_context(home):
    with FakeOpenAI(max_model_len=200) as server:
        done = piped("hi\nthere", "--base_url", server.url, "--max_tokens", 4000)
    assert done.returncode == 0, done.stderr
    assert all(0 < body["max_tokens"] < 200 for body in server.bodies)


@pytest.mark.parametrize("listed", [[], "<html>", {"object": "list"}, {"data": [{"name": "x"}]}, {"data": 1}])
def test_not_an_openai_server(home, listed):
    with FakeOpenAI() as server:
        server.listed = listed
        assert "no OpenAI-compatible server" in error_line("interactive.py", "--base_url", server.url)


def test_pipes(home, server):
    done = piped("one\ntwo \\\nlines\n\n/system Hush.\nthree", "--base_url", server.url)
    assert done.returncode == 0
    assert done.stdout.decode().split("\n") == ["turn 1: one ", "turn 2: two lines ", "turn 3: three ", ""]
    assert server.bodies[1]["messages"][-1]["content"] == "two \nlines"
    done = piped(b"caf\xe9\n", "--base_url", server.url)
    assert "turn 1: caf�" in done.stdout.decode()
    done = piped("hi\ndie right here\nnever asked", "--base_url", server.url)
    assert done.returncode == 2
    assert done.stderr.decode().splitlines()[-1].startswith("error: ")
    assert server.bodies[-1]["messages"][-1]["content"] == "die right here"


def test_completions(home, server):
    done = piped("Once upon", "--base_url", server.url, "--complete")
    assert done.stdout.decode() == "turn 1: Once upon \n"
    assert b"continues the text" in done.stderr
    assert server.bodies[-1]["prompt"] == "Once upon"


def test_user_errors(home, server, tiny_model):
    def error_for(*options):
        return error_line("interactive.py", *options)

    assert "--task_name instruct" in error_for()
    assert "--temperature" in error_for("--temperature", "-1")
    assert "--top_p" in error_for("--top_p", "0")
    assert "--max_tokens" in error_for("--max_tokens", "0")
    assert "--model" in error_for("--base_url", server.url, "--model_path", "x", "--model", "y")
    assert "--system" in error_for("--base_url", server.url, "--complete", "--system", "x")
    for address in ("nonsense", "ftp://x", "http://[::1", "http://"):
        assert f"--base_url {address}: not an http address" in error_for("--base_url", address)
    assert "--base_url" in error_for("--model", "x")
    assert "without --web" in error_for("--articles")
    assert "--port: without effect without --web" in error_for("--port", "8000")
    assert "nowhere" in error_for("--model_path", "nowhere")
    assert "http://127.0.0.1:1/v1" in error_for("--base_url", "http://127.0.0.1:1/v1")
    with FakeOpenAI(models=("a", "b")) as two:
        assert "the server lists a, b; name one" in error_for("--base_url", two.url)


def test_key_is_not_shown(home, server):
    done = piped("refuse", "--base_url", server.url, OPENAI_API_KEY="sk-secret")
    assert done.returncode == 2
    assert b"secret" not in done.stdout + done.stderr
    assert b"***" in done.stderr


def test_local_model_chats_and_a_base_model_completes(home, chat_model, tiny_model):
    def ask(model, *options):
        return piped("Who kept the light?\nAnd then?", "--model_path", model, "--max_tokens", 12, *options)

    done = ask(chat_model)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ask(chat_model).stdout  # same seed, same reply
    assert done.stdout != ask(chat_model, "--seed", 1).stdout
    done = ask(tiny_model)
    assert done.returncode == 0, done.stderr
    assert b"continues the text" in done.stderr


def test_newest_tuned_checkpoint_is_the_default(home, chat_model):
    import shutil

    for number, (name, finished) in enumerate([("instruct-a", True), ("instruct-b", True), ("instruct-c", False)]):
        shutil.copytree(chat_model, home / "ckpts" / name)
        record = home / "ckpts" / name / "run.json"
        record.write_text(json.dumps({"finished": finished}))
        os.utime(record, (number, number))
    done = piped("hello", "--max_tokens", 3)
    assert done.returncode == 0, done.stderr
    assert b"using " in done.stderr
    assert b"instruct-b" in done.stderr


def test_ctrl_c_in_a_local_reply(home, chat_model):
    terminal = Terminal("--model_path", chat_model, "--max_tokens", 4000, "--temperature", "0")
    terminal.send("Who kept the light?")
    time.sleep(1)  # 3,000 tokens take longer
    terminal.send("", CTRL_C)
    terminal.expect(r"\[stopped\]")
    terminal.send("/speed")
    terminal.expect("reply: on")
    assert terminal.quit() == 0


def test_the_cache_changes_nothing(chat_model):
    """Logits with the cache, cropped and interrupted in between, equal those without it."""
    import torch

    from chat.conversation import ReplyStatus, Sampling
    from chat.local_engine import LocalEngine

    model = LocalEngine(str(chat_model))
    first = [{"role": "user", "content": "Who kept the light at Skarrow Head?"}]
    pieces = model.stream(first, Sampling(temperature=0, max_tokens=30), ReplyStatus())
    next(pieces)
    pieces.close()  # stopped
    second = [*first, {"role": "assistant", "content": "Odile."}, {"role": "user", "content": "And?"}]
    for messages in (first, second, first, second[:1], second):
        ids = model.encode(messages)
        with torch.inference_mode():
            plain = model._model(input_ids=torch.tensor([ids])).logits[0, -1]
        assert torch.allclose(model._next_logits(ids), plain, atol=1e-5)
        assert len(model._cached_ids) == len(ids)


def test_greedy_replies_equal_those_of_generate(chat_model):
    import torch

    from chat.conversation import ReplyStatus, Sampling
    from chat.local_engine import LocalEngine

    model = LocalEngine(str(chat_model))
    messages = [{"role": "user", "content": "Who kept the light at Skarrow Head?"}]
    text = "".join(model.stream(messages, Sampling(temperature=0, max_tokens=40), ReplyStatus()))
    ids = torch.tensor([model.encode(messages)])
    out = model._model.generate(ids, max_new_tokens=40, do_sample=False, eos_token_id=sorted(model._stop_ids()))
    assert text == model.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def test_top_p_is_nucleus_sampling():
    import torch

    from chat.conversation import Sampling
    from chat.local_engine import sample_token

    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    generator = torch.Generator().manual_seed(0)
    tokens = [sample_token(logits, Sampling(temperature=1, top_p=0.75), generator) for _ in range(2000)]
    assert set(tokens) == {0, 1}
    assert abs(tokens.count(0) / 2000 - 0.625) < 0.04
    tokens = [sample_token(logits, Sampling(temperature=1, top_p=1), generator) for _ in range(4000)]
    assert abs(tokens.count(3) / 4000 - 0.05) < 0.015
    assert sample_token(logits, Sampling(temperature=0), generator) == 0


def test_drop_oldest_turns():
    def count(messages):
        return sum(len(m["content"]) for m in messages)

    conversation = Conversation("sys")
    for n in range(3):
        conversation.add_user(f"q{n}" * 5)
        conversation.add_assistant(f"a{n}" * 5)
    conversation.add_user("last")
    messages = conversation.messages()
    assert drop_oldest_turns(messages, 1000, count) == (messages, 0)
    kept, dropped = drop_oldest_turns(messages, 3 + 4 + 45, count)
    assert dropped == 1
    assert kept == [messages[0], *messages[3:]]
    assert drop_oldest_turns(messages, 7, count) == ([messages[0], messages[-1]], 3)
    assert drop_oldest_turns(messages, 6, count) is None


@pytest.mark.parametrize("content", ["", "[]\n", '{"messages": [{"role": "user", "content": "a"}]}\n', "x\n"])
def test_loading_an_invalid_conversation(tmp_path, content):
    (tmp_path / "t.jsonl").write_text(content)
    conversation = Conversation("kept")
    with pytest.raises(UserError, match=r"t\.jsonl"):
        conversation.load(tmp_path / "t.jsonl")
    assert conversation.system == "kept"


def test_tab_completes_commands_files_and_titles(home, server):
    opened = Terminal("--base_url", server.url, "--task", "example")

    def complete(typed: str, completed: str, then: str) -> None:
        opened.send(typed, end="\t")
        opened.expect(completed)
        opened.send(then)

    complete("/temp", "erature", " 0.5")
    opened.expect("temperature: 0.5")
    opened.send("hello")
    opened.expect("turn 1: hello")
    opened.send(f"/save {home}/talk.jsonl")
    opened.expect("saved")
    complete(f"/load {home}/ta", "lk.jsonl", "")
    opened.expect("1 turns")
    complete("What is told in the glassb", "Glassblowers' Strike", "?")
    opened.expect("turn 2: What is told in The Glassblowers' Strike")
    assert opened.quit() == 0


def test_what_is_typed_during_a_reply_is_the_next_message(terminal, server):
    terminal.send("slow please")
    terminal.expect("word5 ")
    terminal.send("typed ahead", end="")
    terminal.expect("word20 ")
    shown = terminal.process.before.decode()
    assert "typed" not in shown and not re.search("word(?! ?[0-9])", shown.replace("\r\n", " "))
    terminal.send("!")
    terminal.expect("turn 2: typed ahead!")
    assert terminal.quit() == 0


def test_lines_are_broken_between_words_and_turns_are_set_apart(terminal, server):
    terminal.process.setwinsize(40, 25)
    terminal.send("abcdefghi " * 6)
    terminal.expect("turn 1: ")
    terminal.expect("\r\n\r\n")
    lines = terminal.process.before.decode().split("\r\n")
    assert [line.strip() for line in lines] == ["abcdefghi", *["abcdefghi abcdefghi"] * 2, "abcdefghi"]


@pytest.mark.parametrize("width", [7, 20])
def test_word_wrap(width):
    from chat.terminal import WordWrap

    text = "a bc  def\n\nghij   klmnop qrstuvwxyzabcdefghi 12 灯台の光 end "
    wrap = WordWrap(width)
    shown = "".join([*map(wrap.feed, text), wrap.rest()])
    assert shown.split() == text.split() or shown.replace("\n", "").replace(" ", "") == "".join(text.split())
    whole = WordWrap(width)
    assert whole.feed("x" * 30 + " y") == "x" * 30
    assert whole.rest() == " y"
    for line in shown.split("\n"):
        assert len(line) <= width or " " not in line.strip()


def test_titles_that_begin_with_the_end_of_a_message():
    from chat.terminal import matching_titles

    titles = ["The Lamp", "The Lamp at Skarrow Head", "Bells"]
    assert matching_titles("tell me about the la", titles) == [("The Lamp", 6), ("The Lamp at Skarrow Head", 6)]
    assert matching_titles('about "bel', titles) == [("Bells", 3)]
    assert matching_titles("amp", titles) == [] == matching_titles("", titles)
