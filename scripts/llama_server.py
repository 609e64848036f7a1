"""llama.cpp's server with an OpenAI-compatible API, for the duration of one command.

    python scripts/llama_server.py MODEL.gguf -- python data/entigraph.py 0 --task example ...

The server listens on a free port of 127.0.0.1, and the command gets its address in $OPENAI_BASE_URL. The server
runs inside this process, so that nothing is left running after the command ends or is interrupted by Ctrl-C.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from utils.cli import make_parser, positive_int
from utils.errors import UserError, run

SLOT_CONTEXT_TOKENS = 4096  # an article of 1,000 tokens, a prompt and a completion


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("gguf", type=Path, help="model file")
    parser.add_argument("--slots", type=positive_int, default=2, help="concurrent requests")
    parser.add_argument("--threads", type=positive_int, default=len(os.sched_getaffinity(0)), help="CPU threads")
    parser.add_argument("command", nargs="+", help="the command to run, after --")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    server, base_url = start_server(args.gguf, args.slots, args.threads)
    environment = os.environ | {"OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": "local"}
    with subprocess.Popen(args.command, env=environment) as process:
        try:
            status = process.wait()
        except KeyboardInterrupt:  # the terminal has sent it to the command too, which ends first
            status = process.wait() or 130
    del server
    sys.stdout.flush()
    os._exit(status)  # an ordinary exit would join the server's threads, which wait for requests


def start_server(gguf: Path, slots: int, threads: int):
    """Start the server and return it with its base URL. The server stops when the object is deleted."""
    if not gguf.is_file():
        raise UserError(f"{gguf}: no such file; python scripts/example_model.py --gguf prints the example model's path")
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(gguf)
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.n_parallel, params.n_ctx = slots, slots * SLOT_CONTEXT_TOKENS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cache_ram_mib = 0
    params.verbosity = 0
    server = xllamacpp.Server(params)
    return server, f"{server.listening_address}/v1"


if __name__ == "__main__":
    run(main)
