"""Retrieval and open-book evaluation with the real embedding model, FAISS and BM25; only the servers are fake."""

import json
import signal
import time

import numpy as np
import pytest

from inference import client, retrieval
from inference.embeddings import ApiEmbedder, LocalEmbedder, embed
from inference.retrieval import Chunk
from tasks import multiple_choice
from tasks.documents import load_task
from tasks.rag import SearchSettings, retrieve
from tests.conftest import ROOT, error_line, start_script, succeed
from utils import paths
from utils.errors import UserError

SEARCH = ("evaluation.py", "--task", "example", "--rag", "--retrieval_only")
RETRIEVAL = "--protocol loglik --top_k 2 --chunk_size 256 --retriever bm25"
OPEN = ("evaluation.py", "--task", "example", "--rag", *RETRIEVAL.split(), "--model_path")


@pytest.fixture
def few(home) -> tuple:
    """Dense retrieval only, on four of the articles."""
    raw = home / "data/dataset/raw/few.jsonl"
    raw.parent.mkdir(parents=True)
    articles = (ROOT / "data/example/articles.jsonl").read_bytes().splitlines(True)
    raw.write_bytes(b"".join(articles[:4]))
    return ("evaluation.py", "--task", "few", "--rag", "--retrieval_only", "--retriever", "dense")


def vectors() -> bytes:
    return b"".join(path.read_bytes() for path in sorted(paths.cache_dir().glob("vectors-*")))


def test_splitting_keeps_every_word():
    for document in load_task("example")[:3]:
        for size in (64, 256, 1024):
            parts = retrieval.split(document.text, size)
            assert max(map(len, parts)) <= size
            assert "".join("".join(parts).split()) == "".join(document.text.split())
    parts = retrieval.split(document.text, 256, 64)
    assert sum(map(len, parts)) > len(document.text)


def test_fusion():
    # 1 is second in both rankings; 0 is first in only one.
    assert retrieval.fuse([[0, 1, 2], [3, 1, 4]], 9) == [1, 0, 3, 2, 4]
    assert retrieval.fuse([[5, 6], []], 1) == [5]


def test_recall_and_mrr():
    result = retrieval.recall_and_mrr([1, 2, None, 8])
    assert (result["recall@1"], result["recall@2"], result["recall@8"]) == (0.25, 0.5, 0.75)
    assert result["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 8) / 4, abs=1e-4)


def test_bm25_matches_stems():
    chunks = [Chunk("a", 0, '"Of Whales"', "The lamps burned."), Chunk("b", 0, '"Of Tides"', "A gull.")]
    assert retrieval.bm25(chunks, ["burning lamp", "tides", "nothing"], 2) == [[0], [1], []]


def test_bm25_in_other_scripts():
    texts = [
        "灯塔的看守人每天晚上点灯。",
        "雾来的时候他敲钟。",
        "ทำไมเขาไม่กลับบ้าน",
        "प्रकाश स्तंभ का रखवाला",
        "un cafe\u0301",
    ]
    chunks = [Chunk("a", number, "", text) for number, text in enumerate(texts)]
    queries = ["谁在晚上点灯？", "什么时候敲钟", "กลับบ้าน", "रखवाला कौन", "café"]
    assert [ranking[0] for ranking in retrieval.bm25(chunks, queries, 2)] == [0, 1, 2, 3, 4]


def test_every_stage_on_the_example_corpus(home):
    """With the local embedding model texts of similar meaning are near; each text is embedded once."""
    out = succeed(*SEARCH)
    result = json.loads(out.splitlines()[-1])
    assert list(result) == ["passages", "dense", "bm25", "fusion"]
    assert result["fusion"]["recall@8"] == 1
    assert result["dense"]["recall@8"] > 0.95
    assert "recall@8" in out.splitlines()[1]
    before = vectors()
    assert succeed(*SEARCH) == out
    assert vectors() == before
    bare = json.loads(succeed(*SEARCH, "--query", "question").splitlines()[-1])
    assert bare["fusion"]["recall@8"] >= 0.98
    assert vectors().startswith(before)  # only the queries were added
    one, other, third = embed(["A dog barked.", "A hound was barking.", "Bread is dear."], LocalEmbedder(None))
    assert one @ other > 0.6 > 0.3 > one @ third
    assert np.linalg.norm(one) == pytest.approx(1)


def test_killed_search_resumes_to_the_same_result(few):
    expected = succeed(*few)
    (file,) = paths.cache_dir().glob("vectors-*")
    kept = file.read_bytes()
    file.unlink()
    process = start_script(*few)
    while not file.exists() or file.read_bytes().count(b"\n") < 20:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 20 <= file.read_bytes().count(b"\n") < kept.count(b"\n")
    assert succeed(*few) == expected
    assert sorted(file.read_bytes().splitlines()) == sorted(kept.splitlines())


def test_two_searches_at_once_take_turns(few):
    both = [start_script(*few) for _ in range(2)]
    outs = [process.communicate(timeout=200) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert outs[0][0] == outs[1][0]
    lines = vectors().splitlines()
    assert len(lines) == len({json.loads(line)["key"] for line in lines})
    assert sum("waiting for another search" in err for _, err in outs) == 1


def test_served_embeddings_and_reranking(home, server, monkeypatch):
    """Servers that fail or return fewer vectors or scores than requested: nothing is lost or paid for twice."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    server.faults = [500, "fewer", "bad_json", None, None, None, 500, "fewer"]
    embedding = ("--embedding", "text-embedding-3-large", "--embedding_url", server.url)
    served = (*embedding, "--reranker", "rerank-x", "--rerank_url", server.url, "--retrieve", 16)
    result = json.loads(succeed(*SEARCH, *served).splitlines()[-1])
    assert list(result) == ["passages", "dense", "bm25", "fusion", "rerank"]
    assert result["rerank"]["recall@8"] > 0.9
    assert {"/embeddings", "/rerank"} == set(server.paths)
    # OpenAI's key is not sent to the reranker.
    keys = {path: body["headers"]["authorization"] for path, body in zip(server.paths, server.bodies, strict=True)}
    assert keys == {"/embeddings": "Bearer sk-mine", "/rerank": "Bearer none"}
    requests = server.requests
    assert json.loads(succeed(*SEARCH, *served).splitlines()[-1]) == result
    assert server.requests == requests
    server.faults = [400]
    assert "--embedding other" in error_line(*SEARCH, *served, "--embedding", "other")
    server.faults = [400] * 3
    served = (*served, "--reranker", "rerank-y")
    assert "3 of 84 queries failed" in error_line(*SEARCH, *served)
    requests = server.requests
    succeed(*SEARCH, *served)
    assert server.requests == requests + 3


def test_missing_vectors_are_an_error(server, monkeypatch):
    server.faults = ["fewer"] * 6
    embedder = ApiEmbedder("m", server.url)
    monkeypatch.setattr(client, "FIRST_DELAY_S", 0.001)
    with pytest.raises(UserError, match="embedding for 1 of 2 texts"):
        next(embedder.embed(["a", "b"]))


def test_chunks_precede_the_question(home):
    documents = load_task("example")
    items = [(document, question) for document in documents for question in document.questions]

    def passages(**settings):
        return retrieve(documents, items, SearchSettings(retriever="bm25", top_k=4, **settings)).chunks

    first, last = passages(order="best_first"), passages()
    assert [row[::-1] for row in last] == first
    document, question = items[0]
    assert last[0][-1].source == document.uid
    shown = [(p.name, p.text) for p in last[0]]
    prompt = multiple_choice.build_prompt(document, question, "cot", 2, chunks=shown)
    assert prompt.index("Answer: A.") < prompt.index("### Passages") < prompt.index(last[0][0].text)
    assert prompt.index(last[0][3].text) < prompt.rindex("### Question") < prompt.index(question.text)


def test_open_book_evaluation(home, tiny_model):
    out = succeed(*OPEN, tiny_model)
    target = paths.evaluation_file(str(tiny_model), "chunk256-k2-best_last-loglik")
    assert json.loads(out.splitlines()[-1])["file"] == str(target)
    result = json.loads(target.read_text())
    assert result["retrieval"]["bm25"]["recall@8"] == 1
    question = result["documents"][0]["questions"][0]
    assert len(question["passages"]) == 2
    assert question["passages"][-1][0] == result["documents"][0]["uid"]
    assert result["protocol"]["search"]["top_k"] == 2
    stamp = target.stat().st_mtime_ns
    assert succeed(*OPEN, tiny_model) == out
    assert target.stat().st_mtime_ns == stamp
    succeed("evaluation.py", "--task", "example", "--protocol", "loglik", "--model_path", tiny_model)
    closed = paths.evaluation_file(str(tiny_model))
    assert "other prompts" in error_line("evaluation.py", "--compare", closed, target)


def test_prompt_beyond_the_context_is_an_error(home, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    from tests.conftest import make_tiny_model

    folder = make_tiny_model(tmp_path / "short")
    GPT2LMHeadModel(GPT2Config(vocab_size=700, n_embd=32, n_layer=1, n_head=2, n_positions=256)).save_pretrained(folder)
    line = error_line(*OPEN, folder, "--top_k", 8, "--chunk_size", 1024)
    assert "the model's context is 256; lower --top_k" in line


def test_incompatible_search_options(home):
    assert "--top_k: for --rag" in error_line("evaluation.py", "--task", "example", "--model_path", "x", "--top_k", 4)
    assert "BM25 has no vectors" in error_line(*SEARCH, "--retriever", "bm25", "--embedding", "x")
    options = ("--task", "example", "--model_path", "x", "--give_up")
    assert "--give_up: without effect without --base_url" in error_line("evaluation.py", *options)
    assert "--top_k 200" in error_line(*SEARCH, "--top_k", 200)
    assert "--chunk_overlap 1024" in error_line(*SEARCH, "--chunk_overlap", 1024)
    assert "--rerank_url" in error_line(*SEARCH, "--reranker", "x")
    assert "--embedding no/such/model" in error_line(*SEARCH, "--embedding", "no/such/model")
