"""Step 2's choices: cut replies, passages to drop, copies of the articles."""

import json

import pytest

from tasks.documents import article_text, load_task
from tests.conftest import error_line, succeed
from utils import paths
from utils.token_file import TokenFile
from utils.tokenizer import load_tokenizer


@pytest.fixture
def tokenize(home, tiny_model):
    """Tokenise some passages about the first article; returns the output, the sidecar and the texts."""
    document, tokenizer = load_task("example")[0], load_tokenizer(str(tiny_model))

    def run(records: list[dict], *options: str):
        folder = home / "passages"
        folder.mkdir(exist_ok=True)
        lines = [json.dumps({"id": str(n), "kind": "pair", "finish_reason": "stop"} | r) for n, r in enumerate(records)]
        (folder / f"{document.uid}.jsonl").write_text("\n".join(lines) + "\n")
        command = ("data/tokenize_entigraph.py", "--task", "example", "--model", "m", "--input", folder)
        out = succeed(*command, "--tokenizer", tiny_model, *options)
        file = TokenFile(paths.passages_bin("example", "m"), "")
        ends = [0, *file.ends.tolist()]
        texts = [
            tokenizer.decode(file.ids[a:b], skip_special_tokens=True) for a, b in zip(ends, ends[1:], strict=False)
        ]
        return out, file.meta, texts

    return run


WHOLE = "The lamp burned above the reef all night and nobody saw it. " * 12


def test_cut_replies_are_trimmed_or_dropped(tokenize):
    records = [{"text": WHOLE + "Then the", "finish_reason": "length"}, {"text": "Too sh", "finish_reason": "length"}]
    out, _, texts = tokenize(records + [{"text": "A whole one."}])
    assert "replies cut at --max_tokens: 1 trimmed to whole sentences, 1 left out" in out
    assert sorted(texts) == ["A whole one.", WHOLE.strip()]
    out, _, texts = tokenize(records + [{"text": "A whole one."}], "--drop_cut")
    assert "0 trimmed to whole sentences, 2 left out" in out
    assert texts == ["A whole one."]


def test_min_quality_auto_drops_what_is_broken_and_says_how_much(tokenize):
    good = "A quiet passage that says each thing once, and then ends."
    loop = "She kept the light. " * 30
    records = [{"text": good}, {"text": good}, {"text": loop}, {"text": "I'm sorry, I cannot write this."}]
    out, _, texts = tokenize(records, "--min_quality", "auto")
    assert "1 of 4 passages are left; dropped: 1 looping, 1 refusal, 1 repeated" in out
    assert texts == [good]


def test_articles_are_mixed_in_where_little_is_told(tokenize, tiny_model):
    articles = [article_text(document) for document in load_task("example")]
    records = [{"text": f"Passage {n} says nothing of the article at hand, and not briefly. " * 200} for n in range(3)]
    out, meta, texts = tokenize(records, "--with_articles", "auto")
    assert "0% of the source is told by the passages; training on the articles alone may do better; copies" in out
    assert meta["told_once"] < 0.01 and meta["copies_of_articles"] == 1
    assert len(texts) == 3 + len(articles)
    assert all(sum(text[:40] == article[:40] for text in texts) == 1 for article in articles)
    _, meta, texts = tokenize(records, "--with_articles", 2)
    assert len(texts) == 3 + 2 * len(articles) and meta["copies_of_articles"] == 2
    _, meta, texts = tokenize(records)
    assert len(texts) == 3 and "told_once" not in meta
    passages = paths.example_dir() / "passages"
    out = succeed(
        *("data/tokenize_entigraph.py", "--task", "example", "--model", "m", "--input", passages),
        *("--tokenizer", tiny_model, "--with_articles", "auto"),
    )
    assert "92% of the source is told by the passages; copies of each article that are mixed in: 0" in out


def test_wrong_values(home, tiny_model):
    for option in ("--with_articles", "--min_quality"):
        line = error_line("data/tokenize_entigraph.py", option, "some", "--tokenizer", tiny_model)
        assert option in line
