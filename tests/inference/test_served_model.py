"""Vectors, scores and answers of two models behind the same name are never mixed."""

import json
import signal
import time
from contextlib import closing

import numpy as np
import pytest

from inference import embeddings
from inference.embeddings import ApiEmbedder, LocalEmbedder, embed
from inference.retrieval import Chunk, Reranker
from inference.served_model import ServedModel, agree
from tests.conftest import run_script, start_script, succeed
from tests.fake_openai import FakeOpenAI
from utils import paths

TEXTS = ["The lamp burned.", "A gull cried.", "Bread was dear."]
CHUNKS = [Chunk("u", n, "Name", text) for n, text in enumerate(TEXTS)]


def vectors_from(server, texts=TEXTS, role="document"):
    with closing(ApiEmbedder("org/embedder", server.url)) as embedder:
        return embed(texts, embedder, role)


def cached() -> list[str]:
    return sorted(path.name for path in paths.cache_dir().iterdir())


def test_vectors_of_another_model_behind_the_name_are_kept_apart(home, server, capsys):
    first = vectors_from(server)
    assert (vectors_from(server) == first).all()
    assert server.requests == 1
    server.habits.model = "b"
    other = vectors_from(server)
    assert not (other == first).all()
    assert "by another model behind the same name; kept" in capsys.readouterr().err
    assert cached() == ["vectors-embedder-2.jsonl", "vectors-embedder.jsonl"]
    assert (vectors_from(server) == other).all()
    server.habits.model = "a"
    assert (vectors_from(server) == first).all()
    assert server.requests == 2  # nothing was paid twice


def test_the_address_is_part_of_the_identity(home, server, capsys):
    vectors_from(server)
    with FakeOpenAI() as elsewhere:
        vectors_from(elsewhere)
        assert elsewhere.requests == 1
    assert len(cached()) == 2


def test_vectors_by_an_earlier_version_are_checked_and_not_used_silently(home, server, capsys):
    expected = vectors_from(server)
    path = paths.vectors_file("embedder")
    old = [line for line in path.read_text().splitlines(True) if '"server"' not in line]
    path.write_text("".join(old))
    assert (vectors_from(server) == expected).all()  # one of them was embedded again: the same
    assert server.requests == 2
    path.write_text("".join(old))
    server.habits.model = "b"
    assert not (vectors_from(server) == expected).all()
    assert path.read_text() == "".join(old)
    assert "kept, and not used" in capsys.readouterr().err


def test_scores_of_another_model_behind_the_name_are_kept_apart(home, server, capsys):
    def rank():
        return Reranker("ranker", server.url).rank(CHUNKS, ["the lamp"], [[0, 1, 2]])

    rank()
    rank()
    assert server.requests == 1
    server.habits.model = "b"
    rank()
    rank()
    assert server.requests == 2
    assert "by another model behind the same name; kept" in capsys.readouterr().err
    assert cached() == ["reranked-ranker-2.jsonl", "reranked-ranker.jsonl"]


def test_rounding_errors_are_not_another_model():
    vector = np.random.default_rng(0).normal(size=512)
    noisy = vector + np.random.default_rng(1).normal(size=512) * 1e-3
    assert agree(vector.tolist(), noisy.tolist())
    assert not agree(vector.tolist(), np.roll(vector, 1).tolist())
    assert not agree("one", "other")


@pytest.mark.parametrize(
    ("record", "same"),
    [
        ({}, True),
        ({"fixed": "b"}, False),
        ({"fixed": None}, None),
        ({"root": None}, True),
        ({"root": "/weights/2"}, False),
        ({"address": "http://other/v1"}, False),
        ({"model": "n"}, False),
    ],
)
def test_identity(record, same):
    given = {"address": "http://h/v1", "model": "m", "root": "/weights/1", "fixed": "a"}
    assert ServedModel(**given).is_same(given | record) is same


def served(server, *options):
    model = ("--model_path", "served", "--base_url", server.url, "--n_samples", 1)
    return ("evaluation.py", "--task", "example", *model, *options)


def interrupted(server, *options):
    """Kill an evaluation in the middle."""
    server.latency = 0.05
    process = start_script(*served(server, "--concurrency", 2, *options))
    while not any(path.read_bytes().count(b"\n") > 30 for path in paths.out_dir().glob("*.partial.jsonl")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    server.latency = 0


def answers() -> set[str]:
    result = json.loads(paths.evaluation_file("served").read_text())
    return {a["reasoning"] for d in result["documents"] for q in d["questions"] for a in q["attempts"]}


def test_evaluation_is_resumed_with_the_same_model_only(home, server):
    server.answer = "Answer: A."
    interrupted(server)
    server.answer, server.habits.model = "Answer: B.", "b"
    done = run_script(*served(server))
    assert done.returncode == 0
    assert done.stderr.count("by another model behind the same name") == 1
    assert answers() == {"Answer: B."}
    server.answer, server.habits.model = "Answer: A.", "a"
    paid = sum(server.billed.values())
    out = succeed(*served(server))  # the answers before the kill are still there
    assert "moved to" in out
    assert answers() == {"Answer: A."}
    assert sum(server.billed.values()) - paid < 64
    server.habits.model = "b"
    paid = sum(server.billed.values())
    succeed(*served(server))  # the finished evaluation of the other model is moved back
    assert answers() == {"Answer: B."}
    assert sum(server.billed.values()) == paid


def test_evaluation_of_an_earlier_version_is_used_and_said(home, server):
    interrupted(server)
    (partial,) = paths.out_dir().glob("*.partial.jsonl")
    partial.write_text("".join(line for line in partial.read_text().splitlines(True) if '"server"' not in line))
    done = run_script(*served(server))
    assert "not known to be of the same model, and used" in done.stderr
    assert sum(server.billed.values()) <= 84 + 2
    target = paths.evaluation_file("served")
    result = json.loads(target.read_text())
    del result["protocol"]["server"]
    target.write_text(json.dumps(result))
    done = run_script(*served(server))
    assert "may be of another model of this name; they are used" in done.stderr
    assert sum(server.billed.values()) <= 84 + 2


def test_a_server_without_fixed_replies_is_resumed_and_said(home, server):
    server.habits.unsteady = True
    interrupted(server)
    done = run_script(*served(server))
    assert "a change of the model is not noticed" in done.stderr
    assert sum(server.billed.values()) <= 84 + 2


def test_secrets_of_an_address_are_sent_and_never_written(home, server):
    address = server.url.replace("http://", "http://me:hunter2@") + "?api-key=k-999&v=1"
    command = [*served(server)]
    command[command.index("--base_url") + 1] = address
    search = ("--rag", "--retriever", "dense", "--embedding", "e", "--embedding_url", address)
    server.faults = [None, 401]
    done = [run_script(*command, "--concurrency", 1), run_script(*command), run_script(*command, *search)]
    assert [one.returncode for one in done] == [2, 0, 0], done[0].stderr
    assert server.bodies[-1]["headers"]["authorization"].startswith("Basic ")
    seen = "".join(one.stdout + one.stderr for one in done)
    seen += "".join(path.read_text() for path in home.rglob("*") if path.is_file())
    assert "hunter2" not in seen
    assert "k-999" not in seen
    assert server.url in seen


@pytest.mark.parametrize("values", [("query", "passage"), ("search_query", "search_document"), ("query", "document")])
def test_input_type_is_sent_to_servers_that_ask_for_it(home, server, capsys, values):
    server.habits.input_types = values
    vectors_from(server)
    vectors_from(server, TEXTS, "query")
    sent = [body["input_type"] for body in server.bodies if len(body["input"]) == 3]
    assert sent == [values[1], values[0]]  # the same texts in another role are other keys
    assert "`input_type`" in capsys.readouterr().err
    vectors_from(server)
    vectors_from(server, TEXTS, "query")
    assert len(server.billed) == 1
    assert max(server.billed.values()) == 2


def test_servers_that_do_not_ask_get_no_input_type(home, server):
    vectors_from(server, TEXTS, "query")
    assert "input_type" not in server.bodies[0]


@pytest.fixture
def prompted(tmp_path):
    """all-MiniLM-L6-v2 with prompts, by role."""

    def make(prompts: dict) -> str:
        folder = tmp_path / "prompted"
        folder.mkdir()
        for path in embeddings._package_folder().iterdir():
            (folder / path.name).symlink_to(path)
        config = folder / "config_sentence_transformers.json"
        content = json.loads(config.read_text()) | {"prompts": prompts, "default_prompt_name": None}
        config.unlink()
        config.write_text(json.dumps(content))
        return str(folder)

    return make


@pytest.mark.parametrize("name", ["document", "passage"])
def test_local_models_get_their_own_instructions(home, prompted, name):
    embedder = LocalEmbedder(prompted({"query": "Represent this query: ", name: "Passage: "}))
    plain = LocalEmbedder(None)
    for role, prompt in (("query", "Represent this query: "), ("document", "Passage: ")):
        expected = embed([prompt + text for text in TEXTS], plain)
        np.testing.assert_allclose(embed(TEXTS, embedder, role), expected, atol=1e-6)
        np.testing.assert_allclose(embed(TEXTS, embedder, role), expected, atol=1e-6)  # cached by role
    assert not np.allclose(embed(TEXTS, embedder, "query"), embed(TEXTS, plain, "query"))


def test_models_without_instructions_have_the_keys_of_earlier_versions(home):
    plain = LocalEmbedder(None)
    assert (plain.instruction("query"), plain.instruction("document")) == ("", "")
    embed(TEXTS, plain, "query")
    before = paths.vectors_file(plain.label).read_bytes()
    embed(TEXTS, plain, "document")
    assert paths.vectors_file(plain.label).read_bytes() == before


def test_server_on_this_machine_at_another_port():
    """llama_server.py takes a free port at each start; the replies of the same model are used again."""
    given = {"address": "http://127.0.0.1:8001/v1", "model": "m", "root": None, "fixed": "a"}
    one = ServedModel(**given)
    assert one.is_same_at_any_port(given | {"address": "http://localhost:8002/v1"}) is True
    assert one.is_same_at_any_port(given | {"address": "http://127.0.0.1:8002/v1", "fixed": "b"}) is False
    assert (
        one.is_same_at_any_port(given | {"address": "http://127.0.0.1:8002/v1", "fixed": None}) is False
    )  # nothing tells
    assert one.is_same_at_any_port(given | {"address": "http://10.0.0.1:8001/v1"}) is False
