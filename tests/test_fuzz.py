"""Four readers of foreign input, with random input: whatever they get, they raise UserError, or the call failed."""

import contextlib
import json
import os
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.generation import methods
from gptj import formats
from gptj.architectures import GPT_J, GPT_NEOX
from gptj.params import check_model_section, load
from gptj.weight_files import load_hf, load_mdl
from inference import completions
from inference.batch_api import parse_lines
from inference.budget import Ledger
from inference.embeddings import parse_vectors
from tasks import comparison, results
from tasks.contamination import training_files
from tasks.documents import load_documents
from tests.gptj.conftest import TINY
from tests.gptj.test_neox import HUB, NEOX
from training.run_record import is_finished
from utils.errors import UserError
from utils.io import Journal

EXAMPLES = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", 1000)),
    deadline=None,
    derandomize=True,  # the same examples in every run
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
NAMES = st.sampled_from(
    [
        "title",
        "author",
        "article",
        "year",
        "questions",
        "question_unique_id",
        "question",
        "options",
        "gold_label",
        "difficult",
        "answer",
        "aliases",
        "text",
        "choices",
        "message",
        "content",
        "finish_reason",
        "usage",
        "prompt_tokens",
        "completion_tokens",
        "cached_tokens",
        "data",
        "embedding",
        "index",
        "entities",
        "summary",
        "error",
        "type",
        "id",
        "custom_id",
        "response",
        "arguments",
        "settings",
        "base",
        "blocks",
        "finished",
        "file",
        "sha256",
        "model_name",
        "protocol",
        "documents",
        "metrics",
        "uid",
        "gold",
        "name",
        "task",
        "accuracy",
        "ci95",
        "weights",
        "hidden_size",
        "num_heads",
        "rotary_dim",
        "rope_theta",
        "rope_type",
    ]
)
TEXTS = st.text(max_size=6) | st.sampled_from(["\ud800", "2", " ", "x" * 300])
NUMBERS = st.integers() | st.floats() | st.sampled_from([10**400, -1, 0, 2**63])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES | TEXTS, inner, max_size=5),
    max_leaves=8,
)


@st.composite
def changed(draw, value):
    """A JSON value of which one to four parts are replaced or missing."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 4))):
        part = value
        while isinstance(part, dict | list) and part:
            key = draw(st.sampled_from(list(part) if isinstance(part, dict) else range(len(part))))
            if not isinstance(part[key], dict | list) or not part[key] or draw(st.booleans()):
                if isinstance(part, dict) and draw(st.integers(0, 4)) == 0:
                    del part[key]
                else:
                    part[key] = draw(VALUES)
                break
            part = part[key]
    return value


def text_of(value: object) -> str:
    return json.dumps(value)


QUESTION = {
    "question_unique_id": "q",
    "question": "Who?",
    "options": ["a", "b", "c", "d"],
    "gold_label": 1,
    "difficult": 0,
    "answer": "x",
    "aliases": ["y"],
}
RECORD = {"title": "T", "author": "A, B", "article": "One.\n\nTwo.", "year": 1999, "questions": [QUESTION]}


@EXAMPLES
@given(records=st.lists(changed(RECORD | {"set_unique_id": "s"}) | changed(RECORD) | VALUES, max_size=3))
@pytest.mark.parametrize("kind", ["choice", "short"])
def test_task_files(tmp_path, kind, records):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(text_of(record) + "\n" for record in records))
    with contextlib.suppress(UserError):
        for document in load_documents([path], "", kind):
            document.text.encode()
            document.title.encode()


REPLY = {
    "choices": [{"message": {"content": "x"}, "text": "y", "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}},
}
VECTORS = {"data": [{"index": 0, "embedding": [1.0, 2.0]}, {"index": 1, "embedding": [1.0, 2.0]}]}
WAITS = st.sampled_from(["", "x", "1e400", "-5", "nan", "99999999999999", "Fri, 27 Nov 2026 10:00:00 GMT"])


@EXAMPLES
@given(reply=changed(REPLY), vectors=changed(VECTORS), listing=VALUES, cut=st.integers(0, 60), wait=WAITS, noise=TEXTS)
def test_replies(reply, vectors, listing, cut, wait, noise):
    for parse in (completions.parse_chat_reply, completions.parse_choices):
        with contextlib.suppress(ValueError):
            parse(reply)
    usage = completions.parse_usage(reply.get("usage"))
    assert usage is None or min(usage.prompt, usage.completion, usage.cached) >= 0
    completions.tokens_read(reply.get("usage"))
    with contextlib.suppress(ValueError):
        parse_vectors(vectors, 2)
    text = text_of({"entities": listing, "summary": noise})
    for cut_text in (text[:cut] + noise + text[cut:], text[:cut], text):
        with contextlib.suppress(ValueError):
            summary, items = methods.parse_list(cut_text, "entities")
            json.dumps([summary, items], ensure_ascii=False).encode()
        parse_lines(f"{cut_text}\n{text_of(listing)}")
        error = completions.error_from_response(429, {"retry-after": wait}, cut_text.encode("utf-8", "replace"), str)
        assert isinstance(error, Exception)
        with contextlib.suppress(ValueError):
            completions.parse_json_object(cut_text.encode("utf-8", "replace"))


RUN = {
    "arguments": {"model_name": "none", "seed": 0, "subsample_ratio": "1", "eval_blocks": 3},
    "settings": {"precision": "fp32"},
    "data": {"train": {"file": "x.bin", "sha256": "0"}},
    "base": [["model.safetensors", 3, 4, "0"]],
    "blocks": 5,
    "finished": True,
}
OUTPUT = {
    "protocol": {"name": "loglik", "task": "example"},
    "model": "m",
    "metrics": {"accuracy": 1.0, "ci95": [0.0, 1.0], "n": 1},
    "documents": [
        {"uid": "u", "title": "T", "split": "val", "questions": [{"id": "q", "answer": 1, "gold": 1, "attempts": []}]}
    ],
}
CALLS = [{"id": "a", "most": [1, 0, 2]}, {"id": "a", "usage": [1, 0, 2]}, {"id": "b", "batch": [1, 0, 2], "calls": 3}]


@EXAMPLES
@given(run=changed(RUN), output=changed(OUTPUT), calls=changed(CALLS), torn=st.integers(0, 200))
def test_state_files(tmp_path, run, output, calls, torn):
    (tmp_path / "run.json").write_text(text_of(run))
    (tmp_path / "checkpoint-1").mkdir(exist_ok=True)
    (tmp_path / "checkpoint-1/COMPLETE").touch()
    with contextlib.suppress(UserError):
        is_finished(tmp_path, RUN)
    with contextlib.suppress(UserError):
        training_files(str(tmp_path))
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    one.write_text(text_of(output))
    other.write_text(text_of(OUTPUT))
    for read in (lambda: comparison.compare(one, other), lambda: results.read_result(one)):
        with contextlib.suppress(UserError):
            read()
    ledger = tmp_path / "calls.ledger"
    lines = "".join(text_of(call) + "\n" for call in (calls if isinstance(calls, list) else [calls]))
    ledger.write_text(lines[: len(lines) - torn % (len(lines) + 1)] if torn % 3 == 0 else lines)
    with contextlib.suppress(UserError):
        Ledger(ledger).close()
    with contextlib.suppress(UserError):
        Journal(ledger).close()


PARAMS = {
    "train_input": {"data_dir": "x", "batch_size": 4},
    "model": TINY,
    "optimizer": {"learning_rate": [{"scheduler": "Constant", "learning_rate": 1.0}], "betas": [0.9, 0.95]},
    "runconfig": {"max_steps": 3},
}


@EXAMPLES
@given(
    config=changed(HUB | {"rope_parameters": {"rope_theta": 10000, "rope_type": "default"}}),
    section=changed(NEOX),
    params=changed(PARAMS),
    state=changed({"model": {"a": 1}, "weight_map": {"a": "x"}}),
    content=st.binary(max_size=64),
)
def test_checkpoints(tmp_path, config, section, params, state, content):
    for architecture in (GPT_J, GPT_NEOX):
        with contextlib.suppress(UserError):
            formats.config_to_cs(config, architecture, Path("c"))
    with contextlib.suppress(UserError):
        formats.config_to_hf(check_model_section(section, Path("c")))
    with contextlib.suppress(UserError, yaml.YAMLError):
        (tmp_path / "p.yaml").write_text(yaml.safe_dump(params))
        load(tmp_path / "p.yaml")
    (tmp_path / "x.index.json").write_text(text_of(state))
    for name in ("x.mdl", "x.bin"):
        torch.save(state, tmp_path / name)
    for name in ("y.mdl", "y.bin", "y.safetensors"):
        (tmp_path / name).write_bytes((b"\x89HDF\r\n\x1a\n" if len(content) % 2 else b"") + content)
    (tmp_path / "y.index.json").write_bytes(content)
    for name, read in (("mdl", load_mdl), ("bin", load_hf), ("safetensors", load_hf), ("index.json", load_hf)):
        for stem in "xy":
            with contextlib.suppress(UserError):
                read(tmp_path / f"{stem}.{name}")
