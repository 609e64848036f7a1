"""own_corpus.sh from a folder to a report: three kinds of input, wrong use, and kills at any moment."""

import json
import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from scripts.own_corpus_report import LABELS, questions_section
from tests.conftest import ROOT
from tests.fake_openai import ENTITIES, FakeOpenAI
from utils import paths
from utils.sentences import split_sentences

NOUNS = ["lantern", "ledger", "kettle", "anchor", "violin", "basket", "hammer", "saddle", "ribbon", "barrel"]


def note(number: int) -> str:
    """Three sentences with a name, a number and a thing of their own."""
    keeper, thing = f"Keeper{number}", NOUNS[number % len(NOUNS)]
    return (
        f"{keeper} of harbour {number} keeps {number + 11} brass {thing}s behind the tower. "
        f"In {1800 + number % 150} a storm took the northern {thing} away. Nobody has ever found it near Quay{number}."
    )


def reply(prompt: str) -> str:
    """Entities; a passage that repeats what is asked about; a question about the sentence that is named, and its
    answers with the text, not without."""
    if '"entities"' in prompt:
        return json.dumps({"entities": ENTITIES, "summary": "A summary."})
    if '"right"' in prompt:
        return json.dumps(make_question(prompt))
    if options := dict(re.findall(r"^([A-D])\. (.*)$", prompt, re.M)):
        text = prompt.partition("Answer this question from the text above")[0]
        right = [letter for letter, option in options.items() if option in text]
        return f"Answer: {right[0]}" if len(right) == 1 and "# Text" in prompt else "Answer: none"
    named = re.findall(r"^- (.*)$", prompt.split("# Task")[-1], re.M)
    return "In short: " + " ".join(named)


def make_question(prompt: str) -> dict:
    title = re.search(r'about the text "(.*?)"', prompt)[1]
    fact = prompt.split(f'Now the sentence of "{title}":')[-1].strip().split("\n")[0]
    words = [word.strip(".,") for word in fact.split() if len(word) > 4]
    right = max(words, key=lambda word: (any(map(str.isdigit, word)), len(word)))
    question = f'In "{title}", which word belongs into: {fact.replace(right, "what")}?'
    return {"fact": fact, "right": right, "question": question, "wrong": ["Zulu77", "Xray88", "Yank99"]}


@pytest.fixture
def generator(home):
    with FakeOpenAI(models=("m",), replies=reply) as server:
        yield server


def command(folder: Path, server: FakeOpenAI, tiny_model: Path, *options: str) -> list[str]:
    small = "--tokens 1500 --per_document 2 --block_size 64 --epochs 1 --tellings 2"
    fixed = ["--base_url", server.url, "--model", "m", "--base_model", tiny_model, *small.split()]
    return ["bash", str(ROOT / "scripts/own_corpus.sh"), str(folder), *map(str, [*fixed, *options])]


def environment() -> dict[str, str]:
    return os.environ | {"OPENAI_API_KEY": "x", "HF_HUB_OFFLINE": "1"}


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(arguments, env=environment(), capture_output=True, text=True, cwd="/", timeout=900)


def succeed(*arguments: str) -> dict:
    done = run(*arguments)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-2000:]
    assert "$ .venv/bin/python data/entigraph.py all --task" in done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def report_files(task: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(paths.report_dir(task).iterdir())}


def copies_of_articles(task: str) -> int:
    return json.loads(paths.passages_bin(task, "m").with_suffix(".json").read_text())["copies_of_articles"]


def test_a_mixed_folder_from_documents_to_report(generator, tiny_model, tmp_path):
    """With a quiz by the generator. The same command again pays for nothing and gives the same report."""
    folder = tmp_path / "mixed"
    (folder / "deep").mkdir(parents=True)
    (folder / "one.txt").write_text(note(1))
    (folder / "two.md").write_text(f"# The second\n\n{note(2)}\n\n- {note(22)}")
    (folder / "deep/three.html").write_text(
        f"<html><title>Third</title><body><article><p>{note(3)}</p></article></body>"
    )
    (folder / "records.jsonl").write_text(json.dumps({"title": "Fourth", "text": note(4)}))
    (folder / "empty.txt").write_text("")
    result = succeed(*command(folder, generator, tiny_model))
    assert {"base", "raw", "synthetic", "open", "gain", "told_once", "report", "seconds"} <= result.keys()
    assert result["base"]["n"] == result["synthetic"]["n"] > 0
    assert result["told_once"] == 1
    assert copies_of_articles("mixed") == 3
    first = report_files("mixed")
    assert first.keys() == {*("left_out.json", "plan.json", "report.html", "report.json", "report.png", "losses.png")}
    html = first["report.html"].decode()
    assert not re.search(r"""(src|href)=["'](?!data:)""", html) and "<script" not in html
    assert "Passages and documents minus documents alone" in html
    for part in ("empty.txt: no text found", "The second", "Keeper3", "What to do next", "<svg", "data:image/png"):
        assert part in html, part
    calls = sum(generator.billed.values())
    again = run(*command(folder, generator, tiny_model))
    assert again.returncode == 0, again.stderr[-2000:]
    assert "empty.txt: no text found" in again.stderr
    assert sum(generator.billed.values()) == calls
    assert report_files("mixed") == first


def test_one_long_document(generator, tiny_model, tmp_path):
    """60,000 tokens, by a generator with a context of 4,096: in sections, none of them lost."""
    folder = tmp_path / "book"
    folder.mkdir()
    text = "\n\n".join(f"## Chapter {n}\n\n" + " ".join(note(50 * n + m) for m in range(50)) for n in range(25))
    assert len(text) > 240_000 - 60_000
    (folder / "book.md").write_text(f"# The Book\n\n{text}")
    generator.max_model_len = 4096
    result = succeed(*command(folder, generator, tiny_model, "--tellings", 1, "--tokens", 30_000))
    assert result["base"]["n"] > 0
    sections = list(paths.passages_dir("book", "m").glob("*.section*.jsonl"))
    assert len(sections) > 15
    prompts = [body["messages"][0]["content"] for body in generator.bodies if "messages" in body]
    sent = " ".join(" ".join(prompt.split()) for prompt in prompts if '"entities"' in prompt)
    assert all(sentence in sent for sentence in split_sentences(note(0) + " " + note(1249)))


def test_three_hundred_notes(generator, tiny_model, tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    for number in range(300):
        (folder / f"note {number}.txt").write_text(note(number))
    options = ("--tokens", 9000, "--per_document", 1, "--tellings", 1, "--with_articles", 2)
    result = succeed(*command(folder, generator, tiny_model, *options))
    assert result["base"]["n"] > 100
    assert copies_of_articles("notes") == 2
    assert "and 270 more documents" in report_files("notes")["report.html"].decode()


def test_ctrl_c_ends_the_journey(generator, tiny_model, tmp_path):
    folder = tmp_path / "stopped"
    folder.mkdir()
    (folder / "a.txt").write_text(note(0))
    generator.latency = 0.3
    process = subprocess.Popen(
        command(folder, generator, tiny_model),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (list(paths.raw_dir().glob("*/*.jsonl")) if paths.raw_dir().exists() else []):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT)
    assert "interrupted" in errors and "== Questions" not in out


def test_ten_kills_of_the_whole_journey(generator, tiny_model, tmp_path):
    """kill -9 of the script and all its processes at ten moments: the same report as without, and nothing paid twice
    but what was in flight."""
    folder = tmp_path / "killed"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.txt").write_text(note(number))
    arguments = command(folder, generator, tiny_model)
    begun = time.monotonic()
    succeed(*arguments)
    seconds, whole = time.monotonic() - begun, report_files("killed")
    billed, home = dict(generator.billed), paths.home()
    for path in (home / "data", home / "out", home / "ckpts"):
        path.rename(path.with_suffix(".whole"))
    rng = random.Random(11)
    generator.billed.clear()
    for _ in range(10):
        process = subprocess.Popen(
            arguments, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(rng.uniform(0.05, 0.9) * seconds)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    succeed(*arguments)
    assert generator.billed.keys() == billed.keys()
    calibration = 2 * 11  # two calls per plan that was killed before it was kept
    assert sum(generator.billed.values()) - sum(billed.values()) <= 10 * 16 + calibration
    killed = report_files("killed")
    for name in ("report.json", "report.png", "losses.png"):
        assert killed[name] == whole[name], name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["{folder}/none"], "no such folder"),
        ([], "name the folder"),
        (["{folder}", "--gguf", "{folder}/x.gguf"], "--gguf"),
        (["{folder}", "--base_url", "http://127.0.0.1:9/v1"], "--model"),
        (["{folder}", "--tokens"], "--tokens: needs a value"),
        (["{folder}", "--with_articles", "some"], "--with_articles some: expects 0 to 100"),
        (["{folder}", "--oops", "1"], "--oops: unknown option"),
        (["{folder}", "{folder}"], "one folder only"),
        (["{folder}", "--questions", "{folder}/q"], "--questions"),
    ],
)
def test_wrong_use_is_one_line(home, tmp_path, options, message):
    done = run("bash", str(ROOT / "scripts/own_corpus.sh"), *(option.format(folder=tmp_path) for option in options))
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert message in line


def test_a_costly_plan_needs_yes(generator, tiny_model, tmp_path):
    """On something that is not a terminal it is refused; the fake server is slow enough for more than an hour."""
    folder = tmp_path / "costly"
    folder.mkdir()
    (folder / "a.txt").write_text(note(1))
    generator.tokens_per_s = 20
    done = run(*command(folder, generator, tiny_model, "--tokens", 9_000_000))
    assert done.returncode == 2
    assert "Add --yes to accept it" in done.stderr
    assert not (paths.report_dir("costly") / "plan.json").exists()


def test_the_three_questions_are_not_the_best_of_the_passages():
    """One that only the passages teach, one that only the documents teach, one that neither does."""
    right = {"base": "", "raw": "D", "synthetic": "PQR", "open": "PQRDN"}  # questions by their first letters
    results = {
        name: {
            "documents": [
                {
                    "title": "T",
                    "questions": [
                        {
                            "id": n,
                            "question": f"{n}?",
                            "options": ["yes", "no"],
                            "gold": 0,
                            "answer": int(n not in known),
                        }
                        for n in "PQRDN"
                    ],
                }
            ]
        }
        for name, known in right.items()
    }
    html = questions_section(results, LABELS)
    assert [name for name in "PQRDN" if f"{name}?" in html] == ["P", "D", "N"]
    assert html.index("P?") < html.index("D?") < html.index("N?")
