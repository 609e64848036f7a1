"""The RAG sweep, the 2 x 2 table and the scaling run, on a tiny model and with BM25."""

import json
import os
import shutil
import signal
import subprocess
import time

from tests.conftest import ROOT, error_line, succeed
from utils import paths

SMALL = {"CHUNKS": "256", "TOP_KS": "1 2", "ORDERS": "best_last"}
OPTIONS = ("--task", "example", "--protocol", "loglik", "--retriever", "bm25")


def sweep(model, **environment) -> subprocess.Popen:
    command = ["bash", ROOT / "scripts/rag_sweep.sh", "--model_path", model, *OPTIONS]
    return subprocess.Popen(
        command,
        cwd="/",
        env=os.environ | SMALL | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def points() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (paths.out_dir() / "rag").glob("*.json")}


def test_killed_sweep_resumes(home, tiny_model):
    assert "rag_sweep.sh" in error_line("scripts/rag_table.py", "--model_path", tiny_model)
    first = sweep(tiny_model)
    while not points():
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    stamps = {path: path.stat().st_mtime_ns for path in (paths.out_dir() / "rag").glob("*.json")}
    # A task of a Slurm array evaluates its own point, the loop all that are missing.
    task = sweep(tiny_model, SLURM_ARRAY_TASK_ID="1", SLURM_SUBMIT_DIR=str(ROOT))
    assert task.wait() == 0, task.stderr.read()
    assert "qualityqa-tiny-chunk256-k2-best_last-loglik.json" in points()
    second = sweep(tiny_model)
    out, err = second.communicate()
    assert second.returncode == 0, err
    assert len(points()) == 2
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    result = json.loads(out.splitlines()[-1])
    assert result["points"] == 2
    rows = [line.split() for line in out[out.index("chunk_size") :].splitlines()[1:3]]
    assert result["best"]["val"] == max(float(row[6]) for row in rows)
    low, high = result["best"]["ci95"]
    assert low <= result["best"]["test"] <= high
    compared = succeed("evaluation.py", "--compare", *[f"out/rag/{min(points())}"] * 2)  # under $SCP_HOME
    assert json.loads(compared.splitlines()[-1])["n"] == 84
    check_table_of_one_task(tiny_model)


def check_table_of_one_task(model) -> None:
    """A7: points of another task of the same model were mixed in."""
    (name, content), *_ = points().items()
    other = json.loads(content)
    other["protocol"]["task"] = "other"
    (paths.out_dir() / "rag" / name.replace("chunk256", "chunk512")).write_text(json.dumps(other))
    command = ("scripts/rag_table.py", "--model_path", model)
    assert "--task: give one of example, other" in error_line(*command)
    assert json.loads(succeed(*command, "--task", "example").splitlines()[-1])["points"] == 2


def test_sweep_requires_a_checkpoint():
    done = subprocess.run(["bash", ROOT / "scripts/rag_sweep.sh"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: --model_path: missing; name a checkpoint\n")
    done = subprocess.run(["bash", ROOT / "scripts/rag_sweep.sh", "--help"], capture_output=True, text=True)
    assert "sbatch --array" in done.stdout


def test_two_by_two(home, tiny_model):
    after = home / "ckpts/after"
    shutil.copytree(tiny_model, after)
    out = succeed(
        "scripts/two_by_two.py", "--base", tiny_model, "--entigraph", after, *OPTIONS, "--chunk_size", 256, "--top_k", 1
    )
    result = json.loads(out.splitlines()[-1])
    assert result["base_open"] == result["entigraph_open"]
    assert result["gain_closed"] == {"difference": 0, "ci95": [0, 0], "p": 1}
    assert result["base_closed"]["n"] == 84
    assert (paths.out_dir() / "two_by_two.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((paths.out_dir() / "two_by_two.json").read_text()) == result
    wrong = ("--base", "no/such/model", "--entigraph", after)
    assert "no/such/model" in error_line("scripts/two_by_two.py", *wrong, *OPTIONS)


def test_scaling_run(token_files, tiny_model, tmp_path, monkeypatch):
    """Nested subsets are trained and evaluated once; a second run reuses all results."""
    shutil.copytree(token_files, tmp_path / "home")
    monkeypatch.setenv("SCP_HOME", str(tmp_path / "home"))
    training = "--lr 1e-3 --rr 0.1 --bs 2 --epochs 1 --task_name example --model written --block_size 128"
    command = f"bash {ROOT}/scripts/scaling.sh {training} --model_name {tiny_model} -- --task example --protocol loglik"
    settings = {"cwd": "/", "env": os.environ | {"RATIOS": "0.1 0.3"}, "capture_output": True, "text": True}
    first, again = (subprocess.run(command.split(), **settings) for _ in range(2))
    assert first.returncode == 0, first.stderr
    points = json.loads(first.stdout.splitlines()[-1])
    assert [point["n"] for point in points] == [84] * 3
    assert points[0]["tokens"] == 0 < 2.5 * points[1]["tokens"] < points[2]["tokens"] < 3.5 * points[1]["tokens"]
    assert points == json.loads((paths.out_dir() / "scaling.json").read_text())
    assert again.stdout.splitlines()[-1] == first.stdout.splitlines()[-1]
    assert again.stderr.count("finished already") == 2
    done = subprocess.run(
        ["bash", ROOT / "scripts/scaling.sh", "--subsample_ratio", "1"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (
        2,
        "error: --subsample_ratio: the subsets are set by RATIOS; leave the option out\n",
    )
