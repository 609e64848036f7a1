"""llama.cpp's server with the example model."""

import json
import os
import signal
import subprocess
import sys
import time

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


@pytest.fixture(scope="module")
def gguf() -> str:
    return succeed("scripts/example_model.py", "--gguf").strip()


def server_command(gguf: str, *command: str) -> list[str]:
    return [sys.executable, str(ROOT / "scripts/llama_server.py"), gguf, "--", *map(str, command)]


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
    """With 8 tokens the entity call is truncated, fails after three attempts, and is reported."""
    command = f"{sys.executable} {ROOT}/data/entigraph.py 0 --task example --model smol --max_tokens 8".split()
    done = subprocess.run(server_command(gguf, *command), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "error: 1 calls failed" in done.stderr
    (journal,) = paths.passages_dir("example", "smol").glob("*.jsonl")
    assert json.loads(journal.read_text())["finish_reason"] == "error"


def test_missing_model_is_reported():
    done = run_script("scripts/llama_server.py", "/no/such.gguf", "--", "true")
    assert done.returncode == 2
    assert "/no/such.gguf" in done.stderr
