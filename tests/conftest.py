"""Shared fixtures: tiny models, temporary home folders, the fake server, and scripts run as a user runs them."""

import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from inference.client import print_once
from tests import forked_script
from tests.fake_openai import FakeOpenAI

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["PYTHONPATH"] = str(ROOT)  # for the fork server
# Expression for the peak resident memory of a process in bytes; getrusage's starts from its parent's.
PEAK = 'int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024'


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty $SCP_HOME."""
    monkeypatch.setenv("SCP_HOME", str(tmp_path))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    return tmp_path


@pytest.fixture
def server():
    print_once.cache_clear()
    with FakeOpenAI() as running:
        yield running


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_script(*command: str, **environment: str) -> subprocess.Popen:
    """Start a script of the repository from a folder outside it."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / command[0]), *map(str, command[1:])],
        cwd="/",
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_script(*command: str, **environment: str) -> subprocess.CompletedProcess:
    """Run a script to its end, in a process forked from a server that has imported torch and transformers."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.forked_script"])
    arguments = [str(ROOT / command[0]), *map(str, command[1:])]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("out", "err")]
        process = context.Process(
            target=forked_script.run, args=(arguments, os.environ | environment, *map(str, files))
        )
        process.start()
        process.join(timeout=300)
        assert process.exitcode is not None, f"{arguments} did not end within 300 s"
        out, err = (path.read_text() for path in files)
    return subprocess.CompletedProcess(command, process.exitcode, out, err)


def succeed(*command: str, **environment: str) -> str:
    done = run_script(*command, **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def error_line(*command: str, **environment: str) -> str:
    """Run a script that must end with a user error, and return its one line `error: …`."""
    done = run_script(*command, **environment)
    assert done.returncode == 2, (done.returncode, done.stderr[-3000:])
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A Llama of 2 layers with a byte-level BPE of 600 tokens, trained on the example articles."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    return make_tiny_model(folder)


LLAMA_TOKENS = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory) -> Path:
    """The tiny model with the special tokens of Llama 3's vocabulary and, like its base model, no chat template."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny-llama", special_tokens=LLAMA_TOKENS)


def make_tiny_model(folder: Path, vocab_size: int = 600, special_tokens: Sequence[str] = ("<s>", "</s>")) -> Path:
    """Save a tiny model and its tokenizer in `folder`. The first two special tokens are BOS and EOS."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    articles = str(ROOT / "data/example/articles.jsonl")
    bpe.train([articles], vocab_size=vocab_size, special_tokens=list(special_tokens), show_progress=False)
    bos, eos = special_tokens[:2]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, bos_token=bos, eos_token=eos)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=0,
        eos_token_id=1,
        max_position_embeddings=4096,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def token_files(tiny_model, tmp_path_factory) -> Path:
    """A home folder with the token files of steps 2 and 3 for the example corpus."""
    home = tmp_path_factory.mktemp("home")
    examples = ROOT / "data/example"
    options = ("--task", "example", "--tokenizer", tiny_model)
    passages = ("--input", examples / "passages", "--model", "written")
    replay = ("--text", examples / "replay.jsonl", "--test_tokens", 3000, "--tokenizer", tiny_model)
    succeed("data/tokenize_entigraph.py", *options, *passages, SCP_HOME=str(home))
    succeed("data/tokenize_entigraph.py", *options, "--raw", SCP_HOME=str(home))
    succeed("data/tokenize_redpj.py", *replay, SCP_HOME=str(home))
    return home
