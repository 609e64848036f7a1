"""llama.cpp's server with an OpenAI-compatible API, for as long as one command runs.

    python scripts/llama_server.py MODEL.gguf -- python data/entigraph.py 0 --task example ...

The server listens on a free port of 127.0.0.1; the command finds it in $OPENAI_BASE_URL. It lives
inside this process, so that nothing is left behind when the command ends, by itself or by Ctrl-C.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from utils.errors import UserError, run

CONTEXT_TOKENS = 4096  # of each slot: an article of 1,000 tokens, a prompt, a reply


def start(gguf: Path, slots: int, threads: int):
    """Start the server; returns it (keep it: it stops when it is dropped) and its base URL."""
    if not gguf.is_file():
        raise UserError(f"{gguf}: no such file; python scripts/example_model.py --gguf prints the example's")
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(gguf)
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.n_parallel, params.n_ctx = slots, slots * CONTEXT_TOKENS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cache_ram_mib = 0
    params.verbosity = 0
    server = xllamacpp.Server(params)
    return server, f"{server.listening_address}/v1"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path, help="the model's file")
    parser.add_argument("--slots", type=int, default=2, help="calls answered at once (default 2)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("command", nargs="+", help="after --, the command to run beside it")
    args = parser.parse_args()
    server, base_url = start(args.gguf, args.slots, args.threads)
    environment = os.environ | {"OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": "local"}
    with subprocess.Popen(args.command, env=environment) as child:
        try:
            status = child.wait()
        except KeyboardInterrupt:  # the terminal sent it to the command too: let it end first
            status = child.wait() or 130
    del server
    sys.stdout.flush()
    os._exit(status)  # the server's threads would otherwise be joined while they wait for calls


if __name__ == "__main__":
    run(main)
