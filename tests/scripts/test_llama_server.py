"""llama.cpp's server with the example model."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, run_script, succeed
from utils import paths

CHAT_REQUEST = """
import os, json, urllib.request
url = os.environ["OPENAI_BASE_URL"]
body = {"model": "x", "max_tokens": 5, "messages": [{"role": "user", "content": "Say hello."}]}
request = urllib.request.Request(url + "/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"})
print(url, json.load(urllib.request.urlopen(request))["usage"]["completion_tokens"])
"""

CLIENT = """
import os, json, urllib.request
def ask(path, body=None):
    url = os.environ["OPENAI_BASE_URL"].removesuffix("/v1") + path
    data = json.dumps(body).encode() if body else None
    return json.load(urllib.request.urlopen(urllib.request.Request(url, data, {"content-type": "application/json"})))
def chat(text, tokens):
    messages = [{"role": "user", "content": text}]
    return ask("/v1/chat/completions", {"messages": messages, "max_tokens": tokens, "ignore_eos": True})["usage"]
def size():
    props = ask("/props")
    return {"slots": props["total_slots"], "context": props["default_generation_settings"]["n_ctx"]}
"""


@pytest.fixture(scope="module")
def gguf() -> str:
    return succeed("scripts/example_model.py", "--gguf").strip()


def server_command(gguf: str, *command: str, options: tuple = ("--slots", 1)) -> list[str]:
    return [sys.executable, str(ROOT / "scripts/llama_server.py"), gguf, *map(str, options), "--", *map(str, command)]


def serve(gguf: str, code: str, *arguments: str, options: tuple = ("--slots", 1)) -> tuple[dict, str]:
    """The JSON that a Python command prints, and the line about the choice of slots and context."""
    command = server_command(gguf, sys.executable, "-c", CLIENT + code, *arguments, options=options)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("llama.cpp: ")]
    return json.loads(done.stdout.splitlines()[-1]), line


def write_corpus(folder, **words: int):
    """A folder of documents with that many words each, by title."""
    folder.mkdir()
    for title, count in words.items():
        (folder / f"{title}.txt").write_text(" ".join(f"lamp{number % 97}" for number in range(count)))
    return folder


def is_reachable(url: str) -> bool:
    code = f"import urllib.request; urllib.request.urlopen({url!r} + '/models', timeout=2)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_server_runs_as_long_as_the_command(gguf):
    command = server_command(gguf, sys.executable, "-c", CHAT_REQUEST)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    url, tokens = done.stdout.split()[-2:]
    assert url.startswith("http://127.0.0.1:")
    assert 1 <= int(tokens) <= 5
    assert not is_reachable(url)


def test_exit_status_is_the_commands(gguf):
    command = server_command(gguf, sys.executable, "-c", "raise SystemExit(7)")
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 7


def test_ctrl_c_leaves_nothing_running(gguf):
    wait = "import os, time; print(os.environ['OPENAI_BASE_URL'], flush=True); time.sleep(60)"
    process = subprocess.Popen(
        server_command(gguf, sys.executable, "-c", wait),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    url = next(line for line in process.stdout if line.startswith("http")).strip()
    assert is_reachable(url)
    os.killpg(process.pid, signal.SIGINT)  # to the whole process group, as a terminal does
    assert process.wait(timeout=10) != 0
    assert not is_reachable(url)
    time.sleep(0.2)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_step_1_over_the_real_server(home, gguf):
    """With 8 tokens the entity call is truncated, fails after three attempts, and is reported; its record says that it
    was cut, so that the next start does not pay for it again."""
    command = f"{sys.executable} {ROOT}/data/entigraph.py 0 --task example --model smol --max_tokens 8".split()
    done = subprocess.run(server_command(gguf, *command), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "error: 1 calls failed" in done.stderr
    (journal,) = paths.passages_dir("example", "smol").glob("*.jsonl")
    record = json.loads(journal.read_text())
    assert (record["finish_reason"], record["max_tokens"], record["tries"]) == ("length", 8, 3)
    assert record["error"]


def test_missing_model_is_reported():
    done = run_script("scripts/llama_server.py", "/no/such.gguf", "--", "true")
    assert done.returncode == 2
    assert "/no/such.gguf" in done.stderr


def test_context_fits_the_longest_document(home, gguf, tmp_path):
    """Its prompt and the whole reply, with names of entities, and no more than is needed."""
    corpus = write_corpus(tmp_path / "notes", short=100, long=700)
    code = """
import sys
sys.path.insert(0, os.getcwd())
from data.generation.methods import PassageRequest
from tasks.documents import load_task
(document,) = [d for d in load_task("notes") if d.title.endswith("long")]
names = ("The Keeper of the Northern Light", "The Ledger of Lost Ships", "The Feast of Lanterns")
usage = chat(PassageRequest(document, "triple", names, "m").prompt(), 60)
print(json.dumps(size() | {"usage": usage}))
"""
    chosen, line = serve(gguf, code, "--corpus", corpus, "--max_tokens", "60")
    assert chosen["usage"]["completion_tokens"] == 60
    assert chosen["usage"]["total_tokens"] <= chosen["context"] <= chosen["usage"]["total_tokens"] + 700
    assert f"1 slot (as given) of {chosen['context']:,} tokens (the longest prompt, about " in line
    assert "long" in line
    assert "short" not in line


def test_a_document_that_does_not_fit_is_named(home, gguf, tmp_path):
    corpus = write_corpus(tmp_path / "notes", short=100, long=4000, longer=5000)
    chosen, line = serve(gguf, "print(json.dumps(size()))", "--corpus", corpus)
    assert chosen["context"] == 8192
    assert "all that the model was trained on; too short for 'longer' (" in line
    assert "and 1 other document " in line


def test_default_task_of_step_1_and_a_missing_corpus(home, gguf):
    done = subprocess.run(server_command(gguf, "data/entigraph.py", "0"), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "download_data.sh; or give --context_tokens" in done.stderr


def test_given_slots_and_context(home, gguf):
    """No probe, and no documents are read."""
    options = ("--slots", 3, "--context_tokens", 1000)
    chosen, line = serve(gguf, "print(json.dumps(size()))", "--task", "none", options=options)
    assert chosen == {"slots": 3, "context": 1024}
    assert "3 slots (as given) of 1,024 tokens (as given)" in line


def test_slots_are_measured(home, gguf):
    chosen, line = serve(gguf, "print(json.dumps(size()))", options=())
    assert chosen["slots"] in (1, 2, 4)
    assert line.startswith(f"llama.cpp: {chosen['slots']} slot")
    assert " tokens/s with 1, " in line
    assert "4,096 tokens (the command names no documents)" in line


def test_a_prompt_that_left_its_slot_comes_from_the_cache_in_memory(home, gguf):
    code = """
first, second = ("".join(f"{word} number {n}. " for n in range(60)) for word in ("Lamp", "Ship"))
usages = [chat(text, 2) for text in (first, second, first + "And?")]
print(json.dumps([usage["prompt_tokens_details"]["cached_tokens"] / usage["prompt_tokens"] for usage in usages]))
"""
    cached, line = serve(gguf, code)
    assert cached[0] == 0
    assert cached[1] < 0.1
    assert cached[2] > 0.9
    assert "prompt cache of up to " in line


def test_two_documents_over_the_real_server(home, gguf, tmp_path):
    """Each document's prefix is computed once, though another's call lies between the calls of hosted servers."""
    corpus = write_corpus(tmp_path / "notes", one=300, two=300)
    step = (
        f"{sys.executable} {ROOT}/data/entigraph.py all --corpus {corpus} --model smol --method rephrase --max_tokens 8"
    )
    done = subprocess.run(server_command(gguf, *step.split()), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "calls in flight: 1; the calls of a document follow each other" in done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["calls"] == 6  # neither document is split
    assert 0.55 < summary["cached_tokens"] / summary["prompt_tokens"] <= 2 / 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--context_tokens", 9000), "--context_tokens 9000"),
        (("--slots", "many"), "--slots many: must be a whole number above 0"),
    ],
)
def test_impossible_options(gguf, options, message):
    done = subprocess.run(server_command(gguf, "true", options=options), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_file_of_another_kind_is_reported(tmp_path):
    (tmp_path / "notes.txt").write_text("not a model")
    done = run_script("scripts/llama_server.py", tmp_path / "notes.txt", "--", "true")
    assert done.returncode == 2
    assert "notes.txt: not a language model in GGUF format" in done.stderr


def test_ctrl_c_during_the_measurement(home, gguf):
    process = subprocess.Popen(
        server_command(gguf, "sleep", "60", options=()), cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True
    )
    while not listens(process) and process.poll() is None:
        time.sleep(0.01)
    time.sleep(3)  # the start itself cannot be interrupted (LOG.md, 2026-11-30)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert b"Traceback" not in process.stderr.read()


def listens(process) -> bool:
    """True once a process listens on a port of IPv4."""
    folder = Path(f"/proc/{process.pid}/fd")
    with contextlib.suppress(FileNotFoundError):
        sockets = {str(link.readlink()) for link in folder.iterdir() if link.is_symlink()}
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return any(row[3] == "0A" and f"socket:[{row[9]}]" in sockets for row in rows)
    return False
