"""Scripts run in processes that are forked from a server in which torch and transformers are imported.

Importing them takes 6 s, more than most of the tests' scripts need for their work. This module is what the server
preloads; it runs nothing at import that could start a thread.
"""

import importlib
import multiprocessing
import os
import resource
import runpy
import signal
import sys
from pathlib import Path

FILE_LIMIT = "TEST_FILE_LIMIT"  # variable: bytes above which writing to a file fails, as on a full disk
KILL_AT = "TEST_KILL_AT"  # variable: see kill_at
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree")  # audit events
PRELOADED = (
    "accelerate",
    "torch",
    "transformers.trainer",
    "transformers.models.llama.modeling_llama",
    "training.trainer",
)

if multiprocessing.current_process().name == "MainProcess" and "forkserver" in " ".join(sys.orig_argv):
    for name in PRELOADED:
        importlib.import_module(name)


def run(command: list[str], environment: dict[str, str], out: str, err: str) -> None:
    """Run a Python script as `python SCRIPT ARGUMENTS…` would from the folder /, with output to two files.
    FILE_LIMIT in `environment` limits the size of files."""
    for stream, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir("/")
    if limit := int(os.environ.pop(FILE_LIMIT, "0")):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.argv, sys.path[0] = command, str(Path(command[0]).parent)
    changes = kill_at(int(os.environ[KILL_AT]), os.environ["SCP_HOME"]) if KILL_AT in os.environ else []
    runpy.run_path(command[0], run_name="__main__")
    print(f"{len(changes)} changes" if KILL_AT in os.environ else "", file=sys.stderr, flush=True)


def kill_at(number: int, folder: str) -> list[str]:
    """Kill this process with -9 just before its `number`-th change below `folder`: a file opened for writing, a rename,
    a removal, a new folder. Returns a list to which the changes are added; 0 kills at none."""
    process, changes = os.getpid(), []

    def count(event: str, arguments: tuple) -> None:
        changing = event in CHANGES or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR))
        if changing and str(arguments[0]).startswith(folder) and os.getpid() == process:
            changes.append(event)
            if len(changes) == number:
                os.kill(process, signal.SIGKILL)

    sys.addaudithook(count)
    return changes
