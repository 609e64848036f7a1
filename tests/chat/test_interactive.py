"""interactive.py in a terminal and with a pipe."""

import json
import os
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


@pytest.fixture
def streaming():
    with FakeOpenAI() as running:
        yield running


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
        self.sees("Ctrl-D quits")
        self.sees(">")

    def types(self, text: str, end: str = "\r") -> None:
        self.process.send(text + end)

    def sees(self, pattern: str) -> str:
        self.process.expect(pattern)
        return self.process.match.group().decode()

    def leaves(self) -> int:
        self.types("", CTRL_D)
        self.process.expect(pexpect.EOF)
        self.process.close()
        return self.process.exitstatus


@pytest.fixture
def terminal(home, streaming):
    opened = Terminal("--base_url", streaming.url)
    yield opened
    opened.process.close(force=True)


def test_a_conversation_remembers(terminal, streaming):
    terminal.types("hello there")
    terminal.sees("turn 1: hello there")
    terminal.types("and then?")
    terminal.sees("turn 2: and then")
    assert [m["content"] for m in streaming.bodies[-1]["messages"]] == [
        "hello there",
        "turn 1: hello there ",
        "and then?",
    ]
    terminal.types("/reset")
    terminal.sees("new conversation")
    terminal.types("again")
    terminal.sees("turn 1: again")
    assert terminal.leaves() == 0


def test_commands(terminal, streaming, home):
    terminal.types("/help")
    terminal.sees("/temperature")
    terminal.types("/nonsense")
    terminal.sees("error: there is no /nonsense")
    terminal.types("/system Be brief.")
    terminal.sees("system message: Be brief")
    terminal.types("/temperature 0.25")
    terminal.sees("temperature: 0.25")
    terminal.types("/temperature warm")
    terminal.sees("error: /temperature warm")
    terminal.types("/retry")
    terminal.sees("error: no message to send again")
    terminal.types("/speed")
    terminal.sees("on")
    terminal.types("hello")
    terminal.sees("turn 1: hello")
    terminal.sees(r"\[\d+ tokens, [\d.]+ tokens/s\]")
    body = streaming.bodies[-1]
    assert body["temperature"] == 0.25
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    terminal.types("/retry")
    terminal.sees("turn 1: hello")
    assert streaming.bodies[-1]["messages"] == body["messages"]
    assert streaming.bodies[-1]["seed"] != body["seed"]
    terminal.types(f"/save {home}/talk.jsonl")
    terminal.sees("saved: ")
    terminal.types(f"/save {home}/talk.jsonl")
    terminal.sees("error: .*exists already")
    terminal.types("/reset")
    terminal.sees("new conversation")
    terminal.types("/system -")
    terminal.sees("system message: none")
    terminal.types(f"/load {home}/talk.jsonl")
    terminal.sees("1 turns")
    terminal.types("more")
    terminal.sees("turn 2: more")
    assert streaming.bodies[-1]["messages"][0]["content"] == "Be brief."
    terminal.types("/load nowhere.jsonl")
    terminal.sees("error: nowhere.jsonl")
    terminal.types("/quit")
    terminal.process.expect(pexpect.EOF)


def test_a_saved_conversation_can_be_tokenized(home, tiny_llama):
    conversation = Conversation("Be brief.")
    conversation.add_user("a")
    conversation.add_assistant("b")
    conversation.save(home / "talk.jsonl")
    out = succeed(
        "data/tokenize_instruct.py",
        "--jsonl",
        home / "talk.jsonl",
        "--test_jsonl",
        home / "talk.jsonl",
        "--tokenizer",
        tiny_llama,
    )
    assert "1 conversations" in out


def test_ctrl_c_stops_the_reply_and_not_the_program(terminal, streaming):
    terminal.types("slow please")
    terminal.sees("word5 ")
    terminal.types("", CTRL_C)
    terminal.sees(r"\[stopped\]")
    terminal.types("go on")
    terminal.sees("turn 2: go on")
    kept = streaming.bodies[-1]["messages"][1]["content"]
    assert kept.startswith("word0 word1 ")
    assert "word100 " not in kept
    terminal.types("half a mess", CTRL_C)
    terminal.sees("Ctrl-D quits")
    terminal.types("whole")
    terminal.sees("turn 3: whole")
    assert terminal.leaves() == 0


def test_arrow_keys_recall_earlier_messages(terminal, home, streaming):
    for text in ("first", "second"):
        terminal.types(text)
        terminal.sees(f"turn .: {text}")
    terminal.types(UP + UP)
    terminal.sees("turn 3: first")
    assert terminal.leaves() == 0
    again = Terminal("--base_url", streaming.url)  # the history outlives the program
    again.types(UP)
    again.sees("turn 1: first")
    assert again.leaves() == 0


def test_several_lines(terminal, streaming):
    terminal.types("one", ALT_ENTER)
    terminal.types("two")
    terminal.sees("turn 1: one two")
    assert streaming.bodies[-1]["messages"][-1]["content"] == "one\ntwo"
    terminal.types("\x1b[200~pasted\nlines\n/reset\nare one message\x1b[201~")
    terminal.sees("turn 2: pasted")
    assert streaming.bodies[-1]["messages"][-1]["content"] == "pasted\nlines\n/reset\nare one message"
    terminal.types("ends with \\")
    terminal.types("more")
    terminal.sees("turn 3: ends with more")
    assert streaming.bodies[-1]["messages"][-1]["content"] == "ends with \nmore"


def test_a_message_of_a_hundred_kilobytes(terminal, streaming):
    text = "word " * 20_000
    terminal.process.delaybeforesend = 0
    terminal.process.send(f"\x1b[200~{text}\x1b[201~")
    terminal.types("")
    terminal.process.timeout = 60
    terminal.sees("turn 1: word word")
    assert streaming.bodies[-1]["messages"][-1]["content"] == text.strip()


def test_bytes_that_are_not_utf8(terminal, streaming):
    terminal.process.send(b"caf\xe9 \xff ol\xc3\xa9\r")
    terminal.sees("turn 1: caf")
    assert streaming.bodies[-1]["messages"][-1]["content"] == "caf� � olé"
    terminal.types("fine")
    terminal.sees("turn 2: fine")


@pytest.mark.parametrize("failure", ["die", "unended", "refuse"])
def test_a_server_that_fails_during_a_reply(terminal, streaming, failure):
    terminal.types("hello")
    terminal.sees("turn 1: hello")
    terminal.types(f"{failure} now")
    line = terminal.sees("error: [^\r]*")
    assert ("connection was lost" in line) == (failure == "die")
    terminal.types("still here")
    terminal.sees("turn 2: still here")
    contents = [m["content"] for m in streaming.bodies[-1]["messages"]]
    assert contents == ["hello", "turn 1: hello ", "still here"]


def test_a_failed_retry_keeps_the_earlier_reply(terminal, streaming):
    terminal.types("hello")
    terminal.sees("turn 1: hello")
    streaming.broken = True
    terminal.types("/retry")
    terminal.sees("error: ")
    streaming.broken = False
    terminal.types("more")
    terminal.sees("turn 2: more")


def test_invalid_file_names(terminal):
    terminal.types("hello")
    terminal.sees("turn 1: hello")
    for command in ("save", "load"):
        for name in ("~nosuchuser/x/y", "x" * 300, "/etc/hostname/x", "/proc/x"):
            terminal.types(f"/{command} {name}")
            terminal.sees("error: ")
    terminal.types("still here")
    terminal.sees("turn 2: still here")


def test_searching_the_history(terminal, streaming):
    terminal.types("hello world")
    terminal.sees("turn 1: hello world")
    terminal.types("other")
    terminal.sees("turn 2: other")
    terminal.types("\x12", "hel")
    terminal.types("")
    terminal.types("")
    terminal.sees("turn 3: hello world")


def test_odd_pieces(terminal, streaming):
    """Surrogate pairs split over two pieces, escape sequences in an error, and an empty reply."""
    streaming.pieces = ["a \ud83d", "\ude00 b"]
    terminal.types("emoji")
    terminal.sees(r"a \? ?\? b|a \?\? b")
    streaming.pieces = []
    terminal.types("nothing")
    terminal.sees("no reply")
    streaming.pieces = None
    terminal.types("refuse")
    line = terminal.sees("error: [^\r]*")
    assert "\x1b" not in line
    terminal.types("fine")
    terminal.sees("turn 2: fine")


def test_retry_repeats_the_failed_message(terminal, streaming):
    terminal.types("die right here")
    terminal.sees("error: ")
    terminal.types("/retry")
    terminal.sees("error: ")
    assert [m["content"] for m in streaming.bodies[-1]["messages"]] == ["die right here"]


def test_control_characters_of_a_reply_are_removed(terminal):
    terminal.types("\x1b[200~a\x1b[31mred\x1b[201~")  # the server says it again
    terminal.sees("turn 1: a")
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


def test_a_server_with_a_shorter_context_than_estimated(home):
    """Older turns are dropped until the server accepts the prompt; a message that is too long by itself is an error."""
    with FakeOpenAI(max_bytes=400) as server:
        done = piped("\n".join(f"message {n} " + "x" * 100 for n in range(4)), "--base_url", server.url)
        assert done.returncode == 0, done.stderr
        assert b"turns were dropped" in done.stderr
        done = piped("x" * 1000, "--base_url", server.url)
        assert done.returncode == 2
        assert b"send a shorter message" in done.stderr


def test_max_tokens_are_limited_to_a_server_s_context(home):
    with FakeOpenAI(max_model_len=200) as server:
        done = piped("hi\nthere", "--base_url", server.url, "--max_tokens", 4000)
    assert done.returncode == 0, done.stderr
    assert all(0 < body["max_tokens"] < 200 for body in server.bodies)


@pytest.mark.parametrize("listed", [[], "<html>", {"object": "list"}, {"data": [{"name": "x"}]}, {"data": 1}])
def test_not_an_openai_server(home, listed):
    with FakeOpenAI() as server:
        server.listed = listed
        assert "no OpenAI-compatible server" in error_line("interactive.py", "--base_url", server.url)


def test_pipes(home, streaming):
    done = piped("one\ntwo \\\nlines\n\n/system Hush.\nthree", "--base_url", streaming.url)
    assert done.returncode == 0
    assert done.stdout.decode().split("\n") == ["turn 1: one ", "turn 2: two lines ", "turn 3: three ", ""]
    assert streaming.bodies[1]["messages"][-1]["content"] == "two \nlines"
    done = piped(b"caf\xe9\n", "--base_url", streaming.url)
    assert "turn 1: caf�" in done.stdout.decode()
    done = piped("hi\ndie right here\nnever asked", "--base_url", streaming.url)
    assert done.returncode == 2
    assert done.stderr.decode().splitlines()[-1].startswith("error: ")
    assert streaming.bodies[-1]["messages"][-1]["content"] == "die right here"


def test_completions(home, streaming):
    done = piped("Once upon", "--base_url", streaming.url, "--complete")
    assert done.stdout.decode() == "turn 1: Once upon \n"
    assert b"continues the text" in done.stderr
    assert streaming.bodies[-1]["prompt"] == "Once upon"


def test_bad_input(home, streaming, tiny_model):
    def error_for(*options):
        return error_line("interactive.py", *options)

    assert "--task_name instruct" in error_for()
    assert "--temperature" in error_for("--temperature", "-1")
    assert "--top_p" in error_for("--top_p", "0")
    assert "--max_tokens" in error_for("--max_tokens", "0")
    assert "--model" in error_for("--base_url", streaming.url, "--model_path", "x", "--model", "y")
    assert "--system" in error_for("--base_url", streaming.url, "--complete", "--system", "x")
    for address in ("nonsense", "ftp://x", "http://[::1", "http://"):
        assert f"--base_url {address}: not an http address" in error_for("--base_url", address)
    assert "--base_url" in error_for("--model", "x")
    assert "--web" in error_for("--articles")
    assert "nowhere" in error_for("--model_path", "nowhere")
    assert "http://127.0.0.1:1/v1" in error_for("--base_url", "http://127.0.0.1:1/v1")
    with FakeOpenAI(models=("a", "b")) as two:
        assert "the server lists a, b; name one" in error_for("--base_url", two.url)


def test_the_key_is_not_shown(home, streaming):
    done = piped("refuse", "--base_url", streaming.url, OPENAI_API_KEY="sk-secret")
    assert done.returncode == 2
    assert b"secret" not in done.stdout + done.stderr
    assert b"***" in done.stderr


def test_a_local_model_chats_and_a_base_model_completes(home, chat_model, tiny_model):
    def ask(model, *options):
        return piped("Who kept the light?\nAnd then?", "--model_path", model, "--max_tokens", 12, *options)

    done = ask(chat_model)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ask(chat_model).stdout  # same seed, same reply
    assert done.stdout != ask(chat_model, "--seed", 1).stdout
    done = ask(tiny_model)
    assert done.returncode == 0, done.stderr
    assert b"continues the text" in done.stderr


def test_the_newest_tuned_checkpoint_is_the_default(home, chat_model):
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
    terminal.types("Who kept the light?")
    time.sleep(1)  # 3,000 tokens take longer
    terminal.types("", CTRL_C)
    terminal.sees(r"\[stopped\]")
    terminal.types("/speed")
    terminal.sees("reply: on")
    assert terminal.leaves() == 0


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
