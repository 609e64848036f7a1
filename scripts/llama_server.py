"""llama.cpp's server with an OpenAI-compatible API, for the duration of one command.

    python scripts/llama_server.py MODEL.gguf -- python data/entigraph.py 0 --task example --max_tokens 600 ...
    python scripts/llama_server.py MODEL.gguf --slots 2 --context_tokens 8192 -- COMMAND ...

The server listens on a free port of 127.0.0.1, and the command gets its address in $OPENAI_BASE_URL. Unless they are
given, the number of slots is measured in about ten seconds, and the context of a slot is what the longest document
needs with its prompt and reply; documents and length of reply are read from the command's --task or --corpus, and
--max_tokens. The server runs inside this process, so that nothing is left running after the command ends or is
interrupted by Ctrl-C.
"""

import argparse
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from inference import llama_cpp
from utils.cli import make_parser, positive_int
from utils.errors import UserError, run
from utils.progress import working

UNKNOWN_WORK_TOKENS = 4096  # context for a command without documents
CANDIDATES = 32  # documents whose tokens are counted, the longest in bytes
GIB = 1 << 30


@dataclass(frozen=True)
class Work:
    """`prompts` are (tokens, title) of the longest documents, in descending order; lengths are in tokens."""

    prompts: list[tuple[int, str]]
    reply_tokens: int

    @property
    def needed_tokens(self) -> int:
        return self.prompts[0][0] + self.reply_tokens if self.prompts else UNKNOWN_WORK_TOKENS

    def too_long(self, context: int) -> str:
        """The documents whose prompt and reply are longer than a context."""
        misfits = [(tokens, title) for tokens, title in self.prompts if tokens + self.reply_tokens > context]
        tokens, title = misfits[0]
        others = f" and {len(misfits) - 1} other document{'s' * (len(misfits) > 2)}" if len(misfits) > 1 else ""
        return f"too short for {title!r} ({tokens:,} tokens){others} with replies of {self.reply_tokens:,} tokens"


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("gguf", type=Path, help="model file")
    parser.add_argument("--slots", type=slot_count, default="auto", help="concurrent requests, or auto: 1, 2 or 4")
    context_help = "context of a slot (default: from the longest document and the command's --max_tokens)"
    parser.add_argument("--context_tokens", type=positive_int, help=context_help)
    parser.add_argument("--threads", type=positive_int, default=len(os.sched_getaffinity(0)), help="CPU threads")
    parser.add_argument("command", nargs="+", help="the command to run, after --")
    return parser.parse_args()


def slot_count(text: str) -> int | str:
    return text if text == "auto" else positive_int(text)


def main() -> None:
    args = parse_arguments()
    try:
        with working("starting llama.cpp"):
            server, base_url = start(args)
    except KeyboardInterrupt:
        print("interrupted before the command was started", file=sys.stderr, flush=True)
        os._exit(130)  # as below
    environment = os.environ | {"OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": "local"}
    with subprocess.Popen(args.command, env=environment) as process:
        try:
            status = process.wait()
        except KeyboardInterrupt:  # the terminal has sent it to the command too, which ends first
            status = process.wait() or 130
    del server
    sys.stdout.flush()
    os._exit(status)  # an ordinary exit would join the server's threads, which wait for requests


def start(args: argparse.Namespace):
    """Start the server with slots and context for the work, and say what was chosen; returns it with its base URL."""
    model = llama_cpp.ModelSize.read(args.gguf)
    if args.context_tokens and args.context_tokens > model.trained_context:
        raise UserError(f"--context_tokens {args.context_tokens}: {args.gguf} was trained on {model.trained_context}")
    work, rates = measure(args, *read_work(args))
    available = llama_cpp.available_memory()
    slots, slots_reason = choose_slots(args, model, work, rates, available)
    context, context_reason = choose_context(args, model, slots, work, available)
    cache_bytes = model.cache_bytes(slots, context, available)
    tqdm.write(  # above the clock
        f"llama.cpp: {slots} slot{'s' * (slots > 1)} ({slots_reason}) of {context:,} tokens ({context_reason}); "
        f"prompt cache of up to {cache_bytes / GIB:.1f} GiB",
        file=sys.stderr,
    )
    return llama_cpp.start_server(args.gguf, slots, context, args.threads, cache_bytes)


def read_work(args: argparse.Namespace) -> tuple[list, int]:
    """The longest documents of the command, and the tokens of a reply; no documents if --context_tokens is given or
    the command names none."""
    from data.generation.calls import MAX_TOKENS
    from tasks import readers
    from tasks.documents import load_task
    from tasks.quiz_maker import QUESTION_TOKENS

    names = {Path(word).name for word in args.command}
    longest_reply = QUESTION_TOKENS if "make_questions.py" in names else MAX_TOKENS
    parser = make_parser("", add_help=False, allow_abbrev=False)
    parser.add_argument("--task")
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--max_tokens", type=positive_int, default=longest_reply)
    options = parser.parse_known_args(args.command)[0]
    if args.context_tokens or not (options.task or options.corpus or "entigraph.py" in names):
        return [], options.max_tokens
    try:
        task = readers.import_corpus(options.corpus, strict=False) if options.corpus else options.task or "quality"
        documents = load_task(task)
    except UserError as error:
        raise UserError(f"{error}; or give --context_tokens, and no documents are read") from error
    return sorted(documents, key=lambda document: -len(document.text.encode()))[:CANDIDATES], options.max_tokens


def measure(args: argparse.Namespace, documents: list, reply_tokens: int) -> tuple[Work, dict[int, float]]:
    """Tokens of the documents' prompts, and throughput by number of slots; with a server of its own. The prompts are
    as long as step 1 assumes, so that it splits no document that the context was made for."""
    from data.generation.sections import PROMPT_TOKENS

    rates, prompts = {}, []
    if args.slots == "auto" or documents:
        server, base_url = llama_cpp.start_server(
            args.gguf, max(llama_cpp.SLOT_COUNTS), llama_cpp.PROBE_CONTEXT, args.threads
        )
        prompts = [
            (llama_cpp.count_tokens(base_url, document.text) + PROMPT_TOKENS, document.title) for document in documents
        ]
        if args.slots == "auto":
            rates = llama_cpp.measure_slots(base_url)
        del server
    return Work(sorted(prompts, reverse=True), reply_tokens), rates


def choose_slots(
    args: argparse.Namespace, model: llama_cpp.ModelSize, work: Work, rates: dict[int, float], available: int
) -> tuple[int, str]:
    """The number of slots, and the reason: what is measured, unless a context for the longest document does not fit
    into memory so often."""
    if args.slots != "auto":
        return args.slots, "as given"
    slots = llama_cpp.best_slots(rates)
    measured = ", ".join(f"{rate:.1f} tokens/s with {count}" for count, rate in rates.items())
    needed = min(args.context_tokens or work.needed_tokens, model.trained_context)
    while slots > 1 and model.largest_context(slots, available) < needed:
        slots, measured = slots // 2, f"{measured}; {slots} need more memory"
    return slots, measured


def choose_context(
    args: argparse.Namespace, model: llama_cpp.ModelSize, slots: int, work: Work, available: int
) -> tuple[int, str]:
    """Tokens per slot, and the reason."""
    if args.context_tokens:
        return llama_cpp.round_up(args.context_tokens), "as given"
    context = min(llama_cpp.round_up(work.needed_tokens), model.largest_context(slots, available))
    if not work.prompts:
        return context, "the command names no documents"
    if work.needed_tokens > context:
        bound = "all that the model was trained on" if context == model.trained_context else "all that fits in memory"
        return context, f"{bound}; {work.too_long(context)}"
    tokens, title = work.prompts[0]
    return context, f"the longest prompt, about {title!r}, has at most {tokens:,}, a reply {work.reply_tokens:,}"


if __name__ == "__main__":
    run(main)
