import json
import subprocess
import sys

import pytest

from utils.errors import UserError
from utils.io import Journal, atomic_write, read_jsonl, write_json


def test_atomic_write_keeps_the_old_file_on_an_error(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write(b"new")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_only_newlines_end_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "a\u2028b\u0085c"}, ensure_ascii=False) + "\n")
    assert read_jsonl(path, "")[0]["text"] == "a\u2028b\u0085c"


def test_journal_drops_a_torn_last_line(tmp_path):
    path = tmp_path / "j.jsonl"
    path.write_text('{"id": 1}\n{"id": 2}\n{"id": 3, "te')
    with Journal(path) as journal:
        assert [record["id"] for record in journal.records] == [1, 2]
        journal.append({"id": 4})
    assert [record["id"] for record in read_jsonl(path, "")] == [1, 2, 4]


def test_journal_names_a_corrupt_line_in_the_middle(tmp_path):
    path = tmp_path / "j.jsonl"
    content = '{"id": 1}\n{"id": \n{"id": 3}\n'
    path.write_text(content)
    with pytest.raises(UserError, match=r"j\.jsonl, line 2: not valid JSON"):
        Journal(path)
    assert path.read_text() == content


def test_journal_drops_records_that_are_not_kept(tmp_path):
    path = tmp_path / "j.jsonl"
    path.write_text('{"id": 1, "bad": true}\n{"id": 2}\n')
    with Journal(path, keep=lambda record: not record.get("bad")) as journal:
        journal.append({"id": 3})
    assert [record["id"] for record in read_jsonl(path, "")] == [2, 3]


def test_journal_is_locked_against_a_second_process(tmp_path):
    path = tmp_path / "j.jsonl"
    command = f"from utils.io import Journal; from pathlib import Path; Journal(Path({str(path)!r}))"
    with Journal(path) as journal:
        journal.append({"id": 1})
        other = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert "another process is writing to it" in other.stderr
    assert subprocess.run([sys.executable, "-c", command]).returncode == 0


def test_full_disk_error_keeps_the_old_file(tmp_path):
    """A file size limit (EFBIG) stands in for ENOSPC: write() raises both."""
    path = tmp_path / "tokens.bin"
    path.write_bytes(b"old")
    code = (
        "import resource, signal\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from utils.token_file import write_tokens\n"
        "from utils.errors import run\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        f"run(lambda: write_tokens(Path({str(path)!r}), ([np.arange(10_000)] for _ in range(10)), {{}}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "no space left" in done.stderr
    assert "tokens.bin" in done.stderr
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["tokens.bin"]


def test_a_journal_to_which_nothing_was_appended_is_removed(tmp_path):
    """E: evaluations that ended before their first answer left an empty .partial.jsonl."""
    with Journal(tmp_path / "j.jsonl") as journal:
        assert journal.path.exists()
    assert not journal.path.exists()
    with Journal(tmp_path / "j.jsonl") as journal:
        journal.append({"id": 1})
    with Journal(tmp_path / "j.jsonl") as journal:
        assert journal.records == [{"id": 1}]


def test_write_json_is_utf8(tmp_path):
    write_json(tmp_path / "a.json", {"é": 1})
    assert "é" in (tmp_path / "a.json").read_text()


def test_full_disk_error_of_a_journal_is_one_line(tmp_path):
    path = tmp_path / "j.jsonl"
    code = (
        "import resource, signal\n"
        "from pathlib import Path\n"
        "from utils.errors import run\n"
        "from utils.io import Journal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "def main():\n"
        f"    with Journal(Path({str(path)!r})) as journal:\n"
        "        for number in range(100):\n"
        "            journal.append({'id': number, 'text': 'x' * 100})\n"
        "run(main)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "no space left" in done.stderr
    with Journal(path) as journal:
        assert [record["id"] for record in journal.records] == list(range(8))
