"""Every step against a server with each habit of real servers: nothing is lost or paid for twice, one line says it."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from chat.api_engine import ApiEngine, hide_reasoning
from chat.compare import Side
from chat.conversation import Conversation, Sampling
from chat.replies import Request, reply_events
from tests.conftest import ROOT, run_script
from tests.fake_openai import ENTITIES
from tests.inference.test_completions import RUN_ON
from tests.inference.test_server_habits import LEDGER
from tests.tasks.test_quiz import options as quiz_command
from tests.tasks.test_quiz import scripted_reply, write_corpus
from utils import paths

CALLS = 1 + 3 + 2  # entities, pairs, triples


@dataclass(frozen=True)
class Fault:
    """`habits` of the server, `write` of the model (a change of its JSON), and what the one line says."""

    habits: dict
    line: str
    write: Callable[[str], str] = str


def listed_objects(reply: str) -> str:
    value = json.loads(reply)
    value["entities"] = [{"name": name, "type": "thing"} for name in value["entities"]]
    return json.dumps(value)


REFUSED = "the server refuses `{}`"
FAULTS = {
    "ignores stop": Fault({"ignores_stop": True}, "the server ignores `stop`"),
    "reasoning": Fault({"reasoning": "block"}, "it is left out"),
    "reasoning without its start": Fault({"reasoning": "closing"}, "it is left out"),
    "parts": Fault({"parts": True}, "they are joined"),
    "eos_token": Fault({"ends": "eos_token"}, "in other words"),
    "STOP": Fault({"ends": "STOP"}, "in other words"),
    "no max_tokens": Fault({"refuses": ("max_tokens",)}, REFUSED.format("max_tokens")),
    "no temperature": Fault({"refuses": ("temperature",)}, REFUSED.format("temperature")),
    "no seed": Fault({"refuses": ("seed",)}, REFUSED.format("seed")),
    "line breaks": Fault({}, "", lambda reply: reply.replace("A summary.", "A\nsummary.")),
    "text after JSON": Fault({}, "", lambda reply: f"Of course {{here}}:\n{reply}\nAnything else?"),
    "objects": Fault({}, "", listed_objects),
    "no end": Fault({}, "", lambda reply: reply.rstrip("]}")),
}


def set_habits(server, name: str) -> Fault:
    for habit, value in FAULTS[name].habits.items():
        setattr(server.habits, habit, value)
    return FAULTS[name]


@pytest.fixture(params=FAULTS)
def fault(request, server) -> Fault:
    return set_habits(server, request.param)


@pytest.fixture(params=[name for name, fault in FAULTS.items() if fault.habits])
def habit(request, server) -> Fault:
    """A fault of steps that expect no JSON from the model."""
    return set_habits(server, request.param)


def check_line(fault: Fault, err: str, shown: bool = True) -> None:
    if fault.line:
        assert err.count(fault.line) == shown, err


def entigraph(server, *flags) -> tuple:
    limits = ("--max_pairs", 3, "--max_triples", 2, "--concurrency", 4)
    return ("data/entigraph.py", "0", "--task", "example", "--model", "m", "--base_url", server.url, *limits, *flags)


def model_of(fault: Fault) -> Callable[[str], str]:
    def reply(prompt: str) -> str:
        if '"entities"' not in prompt.split("# Task")[-1]:
            return "A passage. " + prompt[-60:]
        return fault.write(json.dumps({"summary": "A summary.", "entities": ENTITIES}))

    return reply


def records() -> list[dict]:
    folder = paths.passages_dir("example", "m")
    return [json.loads(line) for path in folder.glob("*.jsonl") for line in path.read_text().split("\n") if line]


def check_records() -> None:
    assert len(records()) == CALLS
    assert {record["finish_reason"] for record in records()} == {"stop"}
    assert not [record for record in records() if "</think>" in json.dumps(record)]
    assert all((record.get("text") or record["entities"]) for record in records())


def test_generation(home, server, fault):
    server.replies = model_of(fault)
    done = run_script(*entigraph(server))
    assert done.returncode == 0, done.stderr
    check_line(fault, done.stderr, "stop`" not in fault.line)
    check_records()
    again = run_script(*entigraph(server, "--retry_failed"))
    assert again.returncode == 0
    assert set(server.billed.values()) == {1}


def test_generation_in_batches(home, server, fault):
    server.replies, out = model_of(fault), ""
    while "0 calls are to be submitted" not in out:
        for action in ("submit", "collect"):
            done = run_script(*entigraph(server, "--batch", action))
            assert done.returncode == 0, done.stderr
            out += done.stdout
    assert out.count("calls submitted") == 2 + ("refuses" in fault.habits)
    check_records()
    assert set(server.billed.values()) == {1}


def test_quiz(home, server, fault, tmp_path):
    corpus = write_corpus(tmp_path / "islands", 2)
    server.replies = lambda prompt: quiz_reply(fault, scripted_reply(prompt))
    server.answer = " C\nQuestion: Which? Answer: A"
    base = ("--base_model", "base", "--base_model_url", server.url)
    done = run_script(*quiz_command(corpus, server), *base)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    assert (counts["written"], counts["unnamed"]) == (8, 2)
    assert "replies that could not be read" not in counts
    assert counts["not answered with the document"] == 2  # by the answer and not by the reasoning before it
    check_line(fault, done.stderr)
    assert set(server.billed.values()) == {1}
    assert run_script(*quiz_command(corpus, server), *base).returncode == 0
    assert set(server.billed.values()) == {1}


def quiz_reply(fault: Fault, reply: str) -> str:
    if '"question"' not in reply:
        return reply
    inner = reply.split("```json\n")[1].split("\n```")[0]
    if fault.write is listed_objects:
        value = json.loads(inner)
        value |= {"right": {"text": value["right"]}, "wrong": [{"text": text} for text in value["wrong"]]}
        return json.dumps(value)
    return fault.write(inner.replace("what is lost?", "what is lost,\nin the end?") if not fault.line else inner)


def evaluation(server, *flags) -> tuple:
    model = ("--model_path", "served", "--base_url", server.url, "--n_samples", 2, "--few_shot", 1)
    return ("evaluation.py", "--task", "example", *model, *flags)


RAG = ("--rag", "--embedding", "text-embedding-3-large", "--top_k", 2, "--retrieve", 8)


@pytest.mark.parametrize("rag", [False, True])
def test_evaluation(home, server, habit, rag):
    server.answer = RUN_ON
    flags = (*RAG, "--embedding_url", server.url) if rag else ()
    done = run_script(*evaluation(server, *flags))
    assert done.returncode == 0, done.stderr
    check_line(habit, done.stderr, "parts" not in habit.habits)
    target = json.loads(done.stdout.splitlines()[-1])["file"]
    questions = [q for d in json.loads(open(target).read())["documents"] for q in d["questions"]]
    assert {attempt["answer_index"] for q in questions for attempt in q["attempts"]} == {2}  # C
    assert not [q for q in questions for attempt in q["attempts"] if "Garden Party" in attempt["reasoning"]]
    prompts = [n for prompt, n in server.billed.items() if prompt.startswith("#")]
    assert set(prompts) == {2}
    paid = sum(server.billed.values())
    assert run_script(*evaluation(server, *flags)).returncode == 0
    assert sum(server.billed.values()) == paid


def chat(server, text: str, *flags) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "interactive.py"), "--base_url", server.url, *flags]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("flags", [(), ("--complete",)])
def test_chat(home, server, habit, flags):
    done = chat(server, "hello there\nand then?\n", *flags)
    assert done.returncode == 0, done.stderr
    replies = [f"turn {1 if flags else n}: {text}" for n, text in ((1, "hello there"), (2, "and then?"))]
    for reply in replies:
        assert reply in done.stdout
    if habit.habits.get("reasoning") != "closing":  # else the reasoning is on the screen before its end is known
        assert "think" not in done.stdout
    if not flags:
        history = [message["content"] for message in server.bodies[-1]["messages"]]
        assert [text.strip() for text in history] == ["hello there", replies[0], "and then?"]
    if "refuses" in habit.habits:
        assert done.stderr.count(habit.line) == 1
        assert len(server.bodies) == 3


@pytest.mark.parametrize(
    ("pieces", "prompt", "shown"),
    [
        (["Hel", "lo", " there"], "", ["Hel", "lo", " there"]),
        (["<th", "ink>a", "b</thi", "nk>\n\n", "Hel", "lo"], "", ["Hel", "lo"]),
        (["\n", "<", "b>bold</b>"], "", ["\n<b>bold</b>"]),
        (["<think>", "and so on"], "", []),
        (["<think>", " is a tag"], "What is <think>?", ["<think>", " is a tag"]),
        (["Hm.", "</think>", "Yes."], "", ["Hm.", "</think>", "Yes."]),
    ],
)
def test_streamed_reasoning_is_not_shown(pieces, prompt, shown):
    """Other text is shown as it arrives."""
    assert list(hide_reasoning(iter(pieces), prompt)) == shown


@pytest.mark.parametrize("habit", ["block", "closing"])
def test_reasoning_on_the_web_page_is_not_in_the_last_message(home, server, habit):
    server.habits.reasoning = habit
    side = Side(ApiEngine(None, server.url), "m", Conversation())
    *_, last = reply_events(Request("hello there", [[]], Sampling(), ""), [side], None)
    assert (last["text"].strip(), last["notices"], last["done"]) == ("turn 1: hello there", [], True)


@pytest.mark.parametrize("batch", [False, True])
def test_ledger(home, server, tmp_path, batch):
    """The case of 46 kB and a server that reads 2,048 tokens."""
    (tmp_path / "lights").mkdir()
    (tmp_path / "lights/ledger.txt").write_text(LEDGER)
    server.habits.context = 2048
    command = ("data/entigraph.py", "all", "--corpus", tmp_path / "lights", "--model", "m", "--base_url", server.url)
    done = [run_script(*command, "--batch", action) for action in ("submit", "collect") if batch]
    done += [run_script(*command)]
    assert done[-1].returncode == (0 if batch else 2)
    said = done[1].stderr if batch else done[-1].stderr
    assert "2,048 tokens" in said
    (path,) = paths.passages_dir("lights", "m").glob("*.jsonl")
    assert [json.loads(line)["finish_reason"] for line in path.read_text().splitlines()] == ["prompt_cut"]
    assert [n for prompt, n in server.billed.items() if "# Task" in prompt] == [1]


def test_field_refused_in_a_batch_is_left_out_of_the_next(home, server):
    server.habits.refuses = ("max_tokens",)
    lines = [run_script(*entigraph(server, "--batch", action)).stderr for action in ("submit", "collect", "submit")]
    assert [line.count("sent as `max_completion_tokens`") for line in lines] == [0, 1, 1]
    assert run_script(*entigraph(server, "--batch", "collect")).returncode == 0
    assert [record["kind"] for record in records()] == ["entities"]


def test_cut_prompts_in_generation(home, server):
    server.habits.context = 300
    done = run_script(*entigraph(server))
    assert done.returncode == 2
    assert "1 calls failed (the last: the server cut the prompt: its context is 300 tokens" in done.stderr
    (record,) = records()
    assert (record["finish_reason"], "text" in record) == ("prompt_cut", False)
    summary = json.loads((paths.passages_dir("example", "m") / "summary.json").read_text())
    assert summary["finish_reasons"] == {"prompt_cut": 1}
    assert summary["prompt_tokens"] == server.tokens["prompt"]
    requests = server.requests
    done = run_script(*entigraph(server))  # it was paid for
    assert "1 prompts were cut by the server" in done.stdout
    assert server.requests == requests
    server.habits.context = 1 << 20
    assert run_script(*entigraph(server, "--retry_failed")).returncode == 0
    assert len(records()) == CALLS


def test_cut_prompts_end_a_run_early(home, server):
    server.habits.context = 300
    command = list(entigraph(server, "--concurrency", 1))
    command[1] = "all"
    done = run_script(*command)
    assert done.returncode == 2
    assert done.stderr.count("the server cut all 3 prompts so far to its context of 300 tokens") == 1
    assert len(records()) == 3
    assert set(server.billed.values()) == {1}


@pytest.mark.parametrize("rag", [False, True])
def test_cut_prompts_in_an_evaluation(home, server, rag):
    server.habits.context = 250
    flags = (*RAG, "--embedding_url", server.url) if rag else ("--few_shot", 5)
    done = run_script(*evaluation(server, *flags, "--concurrency", 1))
    assert done.returncode == 2
    assert "the server cut all 3 prompts so far to its context of 250 tokens" in done.stderr
    assert not paths.evaluation_file("served").exists()
    server.habits.context = 1 << 20
    assert run_script(*evaluation(server, *flags)).returncode == 0


def test_cut_prompts_in_a_quiz(home, server, tmp_path):
    corpus = tmp_path / "islands"
    corpus.mkdir()
    article = json.loads((ROOT / "data/example/articles.jsonl").read_text().splitlines()[0])
    (corpus / "one.md").write_text(f"# {article['title']}\n\n{article['article']}")
    server.replies, server.habits.context = lambda _: "Who knows.", 300
    done = run_script(*quiz_command(corpus, server))
    assert done.returncode == 2
    assert "1 documents failed" in done.stderr
    assert "its context is 300 tokens" in done.stderr
    assert len(server.billed) == 3  # the prompt, and two shorter ones that prove it


def test_passages_of_earlier_versions_with_other_words_count(home, server):
    """They were paid for, and left out; and paid for again with --retry_failed."""
    assert run_script(*entigraph(server)).returncode == 0
    (path,) = paths.passages_dir("example", "m").glob("*.jsonl")
    lines = path.read_text().splitlines()
    for number, word in enumerate(("eos_token", "STOP", "end_turn", "stop_sequence", "COMPLETE"), 1):
        lines[number] = lines[number].replace('"finish_reason": "stop"', f'"finish_reason": "{word}"')
    path.write_text("\n".join(lines) + "\n")
    requests = server.requests
    assert run_script(*entigraph(server, "--retry_failed")).returncode == 0
    assert server.requests == requests
    done = run_script("data/inspect_entigraph.py", "--task", "example", "--model", "m")
    assert json.loads(done.stdout.splitlines()[-1])["passages"] == CALLS
