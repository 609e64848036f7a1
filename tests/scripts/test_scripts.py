"""The shell scripts, as users run them."""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import pytest

from tests.conftest import ROOT, free_port, succeed


def shell(*command: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", *map(str, command)], cwd="/", env=os.environ | environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("name", ["quickstart", "scaling", "rag_sweep", "download_data", "train_slurm"])
def test_help_is_the_header_comment(name):
    done = shell(ROOT / f"scripts/{name}.sh", "--help")
    header = (ROOT / f"scripts/{name}.sh").read_text().split("\n")[1].removeprefix("# ")
    assert (done.returncode, done.stdout.split("\n")[0], done.stderr) == (0, header, "")
    assert f"scripts/{name}.sh" in done.stdout
    assert "set -" not in done.stdout


@pytest.mark.parametrize(
    ("status", "result", "out"),
    [(0, "x", "next\n"), (2, '{"n": 1}', "going on\nnext\n"), (2, "x", ""), (1, '{"n": 1}', ""), (130, '{"n": 1}', "")],
)
def test_only_failed_calls_of_a_stage_are_passed_over(status, result, out):
    """After Ctrl-C in step 1, which ends with 130, own_corpus.sh and quickstart.sh went on with the next step; and they
    trained on what was there after an error that step 1 could not begin with, such as another process at work."""
    common = f"set -euo pipefail; source {ROOT}/scripts/common.sh"
    step = f"bash -c 'echo begun; echo \"$1\"; exit {status}' step '{result}'"
    done = shell("-c", f"{common}; continue_after_user_errors 'going on' {step}; echo next")
    assert (done.stdout, done.returncode) == (out, 0 if out else status)
    assert done.stderr == f"begun\n{result}\n"


def test_json_value_shows_the_output_and_passes_errors_on(tmp_path):
    """The output is appended to a log file, and a failing command keeps its exit status."""
    common = f"set -euo pipefail; source {ROOT}/scripts/common.sh"
    (tmp_path / "log").write_text("before\n")
    command = 'n=$(json_value n printf \'a line\\n{"n": 7}\\n\'); echo "n is $n"'
    done = shell("-c", f"{common}; {{ {command}; }} >> {tmp_path}/log 2>&1")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "log").read_text() == 'before\na line\n{"n": 7}\nn is 7\n'
    done = shell("-c", f"{common}; n=$(json_value n bash -c 'echo begun; exit 2'); echo not reached")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "begun\n")


def test_failed_download_names_the_file(home):
    done = shell(ROOT / "scripts/download_data.sh", QUALITY_URL="http://127.0.0.1:9/none")
    assert done.returncode == 2
    assert "cannot be downloaded; copy the file to" in done.stderr
    assert "QuALITY.v1.0.1.htmlstripped.train" in done.stderr
    assert not list(home.rglob("*.part"))


def test_download_refuses_a_damaged_train_file_and_records_the_dev_file(home):
    raw = home / "data/dataset/raw"
    raw.mkdir(parents=True)
    (raw / "QuALITY.v1.0.1.htmlstripped.train").write_text("something else")
    done = shell(ROOT / "scripts/download_data.sh")
    assert done.returncode == 2
    assert "4011e9952d5395beb8ff7637b963481a400630c1bbe2f40dc0d83f5d59f926ed" in done.stderr
    assert (raw / "QuALITY.v1.0.1.htmlstripped.train").read_text() == "something else"


def test_download_fetches_and_checks(home, tmp_path):
    """From a folder instead of the network, by a copy of the script with the hash of a stand-in train file."""
    source = tmp_path / "source"
    source.mkdir()
    for split in ("train", "dev"):
        (source / f"QuALITY.v1.0.1.htmlstripped.{split}").write_text(f"{split}\n")
    script = (ROOT / "scripts/download_data.sh").read_text()
    ours = hashlib.sha256(b"train\n").hexdigest()
    script = script.replace("4011e9952d5395beb8ff7637b963481a400630c1bbe2f40dc0d83f5d59f926ed", ours)
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/download_data.sh").write_text(script)
    shutil.copy(ROOT / "scripts/common.sh", tmp_path / "scripts")
    copy, url = tmp_path / "scripts/download_data.sh", f"file://{source}"
    done = shell(copy, QUALITY_URL=url)
    assert done.returncode == 0, done.stderr
    raw = home / "data/dataset/raw"
    assert (raw / "QuALITY.v1.0.1.htmlstripped.dev").read_text() == "dev\n"
    recorded = (raw / "QuALITY.v1.0.1.htmlstripped.dev.sha256").read_text().strip()
    assert recorded == hashlib.sha256(b"dev\n").hexdigest()
    assert shell(copy, QUALITY_URL="http://127.0.0.1:9/none").returncode == 0  # existing files are kept
    (raw / "QuALITY.v1.0.1.htmlstripped.dev").write_text("damaged")
    assert "delete it and run this again" in shell(copy, QUALITY_URL=url).stderr


def test_setup_does_nothing_when_it_is_done():
    done = shell(ROOT / "scripts/setup.sh")
    assert (done.returncode, done.stdout) == (0, "")


def test_scripts_parse():
    for path in sorted((ROOT / "scripts").glob("*.sh")):
        assert shell("-n", path).returncode == 0
        assert os.access(path, os.X_OK), path


def test_slurm_starts_one_torchrun_per_node(tmp_path):
    """Stand-ins for srun and scontrol print the command that srun would run."""
    (tmp_path / "srun").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho node7\necho node8\n")
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        ["bash", ROOT / "scripts/train_slurm.sh", "--lr", "5e-06", "--sharding", "hybrid"],
        capture_output=True,
        text=True,
        env=os.environ
        | {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_JOB_NODELIST": "node[7-8]",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_JOB_ID": "5",
            "SLURM_GPUS_ON_NODE": "4",
        },
    )
    assert done.returncode == 0, done.stderr
    assert "--nnodes 2 --nproc_per_node 4" in done.stdout
    assert "--rdzv_endpoint node7:29500" in done.stdout
    assert done.stdout.rstrip().endswith("train.py --lr 5e-06 --sharding hybrid")


def test_serving_a_checkpoint(home, tiny_llama):
    """interactive.py and evaluation.py use `transformers serve`; Ctrl-C leaves no process running."""
    folder = home / "ckpts/tiny-chat"
    shutil.copytree(tiny_llama, folder)
    shutil.copy(ROOT / "utils/llama3.1.jinja", folder / "chat_template.jinja")
    port = free_port()
    server = subprocess.Popen(
        ["bash", ROOT / "scripts/serve.sh", "ckpts/tiny-chat"],
        cwd="/",
        stdout=subprocess.PIPE,
        text=True,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PORT": str(port)},
        start_new_session=True,
    )
    try:
        line = server.stdout.readline()
        command = ["python", "interactive.py", "--base_url", f"http://127.0.0.1:{port}/v1", "--model_path"]
        assert line.partition("#")[0].split() == [*command, str(folder)]
        done = subprocess.run(
            [sys.executable, ROOT / "interactive.py", *command[2:], folder, "--max_tokens", "9"],
            input=b"Who kept the light?\nAnd then?\n",
            capture_output=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(b"\n") >= 2
        options = "--task example --select greedy --max_tokens 4 --few_shot 0"
        out = succeed("evaluation.py", *command[2:], folder, *options.split())
        assert json.loads(out.splitlines()[-1])["n"] == 84
        again = shell(ROOT / "scripts/serve.sh", "ckpts/tiny-chat", PORT=str(port))
        assert again.returncode == 2
        assert f"error: port {port}" in again.stderr
    finally:
        os.killpg(server.pid, signal.SIGINT)
        assert server.wait(30) == 130
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_serving_requires_a_checkpoint(home):
    done = shell(ROOT / "scripts/serve.sh")
    assert done.returncode == 2
    assert "error: name a checkpoint" in done.stderr
    (home / "empty").mkdir()
    done = shell(ROOT / "scripts/serve.sh", home / "empty")
    assert done.returncode == 2
    assert "holds no model" in done.stderr
    for name in ("ckpts/nowhere", "/nowhere", "nowhere", "./a/b"):
        done = shell(ROOT / "scripts/serve.sh", name)
        assert done.returncode == 2
        assert f"error: {name}: no such folder" in done.stderr


def test_quickstart_rejects_unknown_options():
    done = shell(ROOT / "scripts/quickstart.sh", "--chatt")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --chatt: ")
