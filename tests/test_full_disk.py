"""Full and read-only disks: one line, exit code 2, and the files of an earlier run unchanged. A limit of file sizes
stands in for a full disk; what write() raises is handled alike."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, error_line, start_script, succeed
from tests.forked_script import FILE_LIMIT
from utils.errors import DISK_FULL, UserError, disk_errno, name_disk_errors
from utils.io import atomic_write

EXAMPLE = ROOT / "data/example"
READ_ONLY = "/sys/kernel"  # no user can make a folder there
CONVERSATIONS = ("--jsonl", EXAMPLE / "conversations/train.jsonl", "--test_jsonl", EXAMPLE / "conversations/test.jsonl")
STEPS = {
    "passages": ("data/tokenize_entigraph.py", "--task", "example", "--input", EXAMPLE / "passages"),
    "articles": ("data/tokenize_entigraph.py", "--task", "example", "--raw"),
    "replay": ("data/tokenize_redpj.py", "--text", EXAMPLE / "replay.jsonl", "--test_tokens", 3000),
    "conversations": ("data/tokenize_instruct.py", *CONVERSATIONS, "--block_size", 512),
}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("step", STEPS)
def test_token_files(step, home, tiny_llama):
    command = (*STEPS[step], "--tokenizer", tiny_llama)
    assert "permission" in error_line(*command, SCP_HOME=READ_ONLY)
    succeed(*command)
    before = contents(home)
    line = error_line(*command, "--seed", 1, **{FILE_LIMIT: "8000"})
    assert "data/dataset/bins/" in line and "no space left on the disk" in line
    assert contents(home) == before


@pytest.mark.parametrize("processes", [1, 2])
def test_hdf5_files(processes, tmp_path, tiny_model):
    (tmp_path / "texts").mkdir()
    for number in range(2):
        shutil.copy(EXAMPLE / "news.txt", tmp_path / f"texts/{number}.txt")
    command = ("gptj/create_hdf5.py", "--input_dir", tmp_path / "texts", "--tokenizer", tiny_model)
    command += ("--max_seq_length", 64, "--processes", processes)
    assert "permission" in error_line(*command, "--output_dir", f"{READ_ONLY}/x")
    line = error_line(*command, "--output_dir", tmp_path / "out", **{FILE_LIMIT: "8000"})
    assert f"{tmp_path}/out/examples_0_" in line and "no space left on the disk" in line
    assert not list((tmp_path / "out").glob("*.h5"))
    succeed(*command, "--output_dir", tmp_path / "out", "--resume_from_checkpoint")
    succeed(*command, "--output_dir", tmp_path / "whole")
    names = sorted(path.name for path in (tmp_path / "whole").glob("*.h5"))
    assert all((tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in names)


def test_a_killed_process_of_create_hdf5_ends_all(tmp_path, tiny_model):
    """D8: the others waited for it forever."""
    (tmp_path / "texts").mkdir()
    news = (EXAMPLE / "news.txt").read_text()
    for number in range(100):
        (tmp_path / f"texts/{number}.txt").write_text(news * 20)
    command = ("gptj/create_hdf5.py", "--input_dir", tmp_path / "texts", "--tokenizer", tiny_model)
    command += ("--max_seq_length", 64, "--processes", 2, "--files_per_record", 100, "--output_dir", tmp_path / "out")
    run = start_script(*command)
    first = wait_for_workers(run.pid)
    os.kill(first[0], signal.SIGKILL)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 2 and "was killed" in errors and "--resume_from_checkpoint" in errors
    assert not any(map(is_running, first))
    run = start_script(*command, "--resume_from_checkpoint")
    second = wait_for_workers(run.pid)
    run.kill()
    run.communicate()
    ends = time.monotonic() + 20
    while any(map(is_running, second)):  # they would write beside the next run
        assert time.monotonic() < ends
        time.sleep(0.1)


def wait_for_workers(pid: int) -> list[int]:
    """The processes of a run of create_hdf5.py, once both of them have started to write."""
    children = ["pgrep", "-P", str(pid), "-f", "multiprocessing.spawn"]
    ends = time.monotonic() + 60
    while len(found := subprocess.run(children, capture_output=True, text=True).stdout.split()) < 2:
        assert time.monotonic() < ends
        time.sleep(0.1)
    time.sleep(1)
    return list(map(int, found))


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_checkpoints_and_weights(token_files, tiny_model, tmp_path):
    shutil.copytree(token_files / "data", tmp_path / "data")
    recipe = "--lr 1e-3 --rr 0.1 --epochs 1 --bs 4 --block_size 128 --save_steps 5 --task_name example --model written"
    command = ("train.py", *recipe.split(), "--model_name", tiny_model)
    size = (tiny_model / "model.safetensors").stat().st_size
    home = {"SCP_HOME": str(tmp_path)}
    # The trial saving before training; the optimizer's state, which torch writes; and the weights, safetensors.
    assert "could not be saved" in error_line(*command, **home, **{FILE_LIMIT: str(size // 2)})
    line = error_line(*command, **home, **{FILE_LIMIT: str(size + size // 2)})
    assert "no space left on the disk" in line and f"{tmp_path}/ckpts/" in line
    succeed(*command, **home)
    (folder,) = (tmp_path / "ckpts").iterdir()
    assert json.loads((folder / "run.json").read_text())["finished"]
    shutil.rmtree(tmp_path / "data")
    assert "no such file" in error_line(*command, "--seed", 1, SCP_HOME=READ_ONLY)


def test_example_model(home):
    assert "permission" in error_line("scripts/example_model.py", SCP_HOME=READ_ONLY)
    line = error_line("scripts/example_model.py", **{FILE_LIMIT: "1000000"})
    assert "SmolLM2-135M-Instruct: no space left on the disk" in line
    assert not (home / "ckpts/SmolLM2-135M-Instruct").exists()


def test_errors_that_libraries_raise():
    from safetensors import SafetensorError

    for error in (
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
        OSError(28, "No space left on device"),
    ):
        assert disk_errno(error) in DISK_FULL
        with pytest.raises(UserError, match="^/x: no space left"), name_disk_errors(Path("/x")):
            raise error
    with pytest.raises(RuntimeError, match="CUDA"), name_disk_errors(Path("/x")):
        raise RuntimeError("CUDA error")
    with pytest.raises(UserError, match="^damaged$"), name_disk_errors(Path("/x")):
        raise UserError("damaged")


def test_temporary_files_of_killed_runs_are_written_over(tmp_path):
    path = tmp_path / "a.json"
    (tmp_path / ".a.json.tmp").write_bytes(b"a torn file, longer than the next one")
    with atomic_write(path) as file:
        file.write(b"new")
    assert contents(tmp_path) == {"a.json": b"new"}


def test_a_long_wait_for_another_process_is_said(tmp_path):
    code = (
        "import sys; from pathlib import Path; from utils.io import atomic_write\n"
        "with atomic_write(Path(sys.argv[1])) as file: print('open', flush=True); sys.stdin.readline()\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    first = subprocess.Popen([sys.executable, "-c", code, tmp_path / "a"], **pipes)
    assert first.stdout.readline() == "open\n"
    second = subprocess.Popen([sys.executable, "-c", code, tmp_path / "a"], **pipes)
    assert f"waiting for another process that is writing {tmp_path}/.a.tmp" in second.stderr.readline()
    first.communicate("\n")
    assert second.stdout.readline() == "open\n"
    second.communicate("\n")
    assert (first.returncode, second.returncode) == (0, 0)


def test_two_processes_that_write_one_file(tmp_path):
    """They wait for each other: a content of either, never a mixture."""
    code = (
        "import sys; from pathlib import Path; from utils.io import atomic_write\n"
        "for number in range(300):\n"
        "    with atomic_write(Path(sys.argv[1])) as file:\n"
        "        for _ in range(20): file.write(sys.argv[2].encode() * 1000); file.flush()\n"
    )
    path = tmp_path / "a"
    writers = [subprocess.Popen([sys.executable, "-c", code, path, letter]) for letter in "xyz"]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            seen.add(path.read_bytes())
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert seen <= {letter * 20_000 for letter in (b"x", b"y", b"z")} and len(seen) > 1
    assert contents(tmp_path).keys() == {"a"}
