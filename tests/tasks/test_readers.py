import json
from pathlib import Path

import pytest

from tasks import readers
from tasks.documents import load_task
from tests.conftest import error_line, succeed
from utils import paths
from utils.errors import UserError

PAGE = """<html><head><title>The  Weir</title><script>var x = "hidden";</script></head>
<body><nav>Home</nav><main><h1>The Weir</h1><p>It held &amp; held.</p><ul><li><p>One</p></li><li>Two <b>bold</b><ul><li>Three</li></ul></li></ul>
</main><footer>imprint</footer></body></html>"""


def write_pdf(path: Path, text: str) -> None:
    """Write a PDF of one page with one line of text; no installed library writes PDF."""
    stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    data, offsets = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        offsets.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    start = len(data)
    data += b"xref\n0 6\n0000000000 65535 f \n" + b"".join(b"%010d 00000 n \n" % o for o in offsets)
    path.write_bytes(data + b"trailer << /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % start)


@pytest.fixture
def handbook(tmp_path) -> Path:
    folder = tmp_path / "handbook"
    (folder / "deep").mkdir(parents=True)
    (folder / "on_lamps.txt").write_text("Trim the wick daily.")
    (folder / "rules.md").write_text("intro\n\n# The Rules\n\nNo shouting.\n")
    (folder / "page.HTML").write_text(PAGE)
    write_pdf(folder / "deep" / "tides.pdf", "High water at nine.")
    (folder / "more.jsonl").write_text(
        '{"title": "A", "text": "a."}\n{"title": "B", "article": "b.", "author": "Doe, Jo"}\n'
    )
    (folder / "notes.xyz").write_text("not a document")
    return folder


def test_every_file_type(home, handbook):
    assert readers.import_corpus(handbook) == "handbook"
    documents = {d.title: d for d in load_task("handbook")}
    assert set(documents) == {"on lamps", "The Rules", "The Weir", "tides", "A", "B"}
    assert documents["on lamps"].text == "Trim the wick daily."
    weir = documents["The Weir"].text.split()
    expected = "The Weir It held & held. One Two bold Three"
    assert [word for word in weir if word not in "Home -"] == expected.split()
    assert documents["tides"].text == "High water at nine."
    assert documents["B"].byline == "Jo Doe"
    before = paths.corpus_file("handbook").read_bytes()
    readers.import_corpus(handbook)
    assert paths.corpus_file("handbook").read_bytes() == before


@pytest.mark.parametrize(
    "page",
    [
        b"<html><body><div>The main story of the weir.</div><p>Imprint.</p></body></html>",
        b"<html><body><article><p>The main story</p></article><article><p>of the weir. Imprint.</p></article></body></html>",
        b"<html><head><meta charset='iso-8859-1'></head><body><form>The main story of the weir. Imprint. \xe9t\xe9</form></body></html>",
    ],
)
def test_html_pages_keep_all_text(tmp_path, page):
    (tmp_path / "a_page.html").write_bytes(page)
    title, text = readers.read_html(tmp_path / "a_page.html")
    assert " ".join(text.replace("été", "").split()) == "The main story of the weir. Imprint."
    assert "\ufffd" not in text
    assert title == "a page"


def test_imported_corpus_in_step_1_and_retrieval(home, handbook):
    assert "entities" in succeed("data/entigraph.py", "all", "--corpus", handbook, "--dry_run")
    question = {"question_unique_id": "1", "question": "Who is the gull?", "options": ["Ada", "Bo", "Cy", "Di"]}
    question |= {"gold_label": 1, "difficult": 0}
    record = {"title": "Quiz", "text": "The gull is called Ada.", "questions": [question]}
    (handbook / "quiz.jsonl").write_text(json.dumps(record) + "\n")
    out = succeed("evaluation.py", "--corpus", handbook, "--rag", "--retrieval_only", "--retriever", "bm25")
    assert json.loads(out.splitlines()[-1])["bm25"]["recall@1"] == 1


def test_user_errors(home, handbook, tmp_path):
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/a.jsonl").write_text('{"title": "A", "text": "a", "author": 3}\n')
    assert "the author is not a string" in error_line("data/entigraph.py", "0", "--corpus", tmp_path / "odd")
    (tmp_path / "odd/a.jsonl").write_text('{"title": "A", "text": "a\\ud800", "author": null}\n')
    assert readers.import_corpus(tmp_path / "odd") == "odd"
    assert "make_questions.py" in error_line("evaluation.py", "--task", "odd", "--rag", "--retrieval_only")
    assert "no such folder" in error_line("data/entigraph.py", "0", "--corpus", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no documents"):
        readers.import_corpus(tmp_path / "empty")
    (handbook / "bad.pdf").write_bytes(b"%PDF-1.4 nonsense")
    with pytest.raises(UserError, match=r"bad\.pdf"):
        readers.import_corpus(handbook)
    (handbook / "bad.pdf").unlink()
    (handbook / "blank.txt").write_text(" \n")
    with pytest.raises(UserError, match=r"blank\.txt: no text"):
        readers.import_corpus(handbook)
    (handbook / "blank.txt").write_text("x")
    (handbook / "rules2.md").write_text("# The Rules\nothers")
    with pytest.raises(UserError, match="same title"):
        readers.import_corpus(handbook)
    (handbook / "rules2.md").unlink()
    paths.corpus_file("handbook").parent.mkdir(parents=True, exist_ok=True)
    paths.corpus_file("handbook").write_text('{"title": "mine", "article": "x"}\n')
    with pytest.raises(UserError, match="not made from this folder"):
        readers.import_corpus(handbook)
