"""Encoding of step 2 against a loop that appends ids to a Python list: tokens/s, memory, ids.

    pip download llama-models==0.3.0 --no-deps -d /tmp/llama    # contains Llama 3's tokenizer
    python benchmarks/bench_tokenize.py /tmp/llama/*.whl

The text is the sources and documentation in this Python's site-packages, one document per file, in order of
path. Each side runs in its own process; the ids that both write are compared.
"""

import argparse
import base64
import json
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from reports.tables import print_table
from utils.cli import make_parser, positive_float, print_result
from utils.errors import UserError, run

SUFFIXES = {".py", ".pyi", ".md", ".rst", ".txt", ".h", ".c", ".cpp", ".js", ".html"}


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("wheel", type=Path, help="the llama-models wheel")
    parser.add_argument("--megabytes", type=positive_float, default=100, help="size of the text")
    parser.add_argument("--side", choices=["ours", "loop"], help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.side:
        {"ours": encode_ours, "loop": encode_loop}[args.side](args.wheel, args.megabytes, args.out)
        return
    with tempfile.TemporaryDirectory() as name:
        tokenizer, files = Path(name) / "llama3", {key: Path(name) / f"{key}.bin" for key in ("fifth", "ours", "loop")}
        write_tokenizer(args.wheel, tokenizer)
        fifth = measure("ours", tokenizer, args.megabytes / 5, files["fifth"])
        ours = measure("ours", tokenizer, args.megabytes, files["ours"])
        loop = measure("loop", tokenizer, args.megabytes, files["loop"])
        same = np.array_equal(*(np.fromfile(files[key], np.int32) for key in ("ours", "loop")))
    rows = [
        (name, f"{one['tokens']:,}", f"{one['tok_s']:,.0f}", f"{one['peak'] / 1e6:,.0f}", one["encoder"])
        for name, one in (("ours, a fifth", fifth), ("ours", ours), ("loop", loop))
    ]
    print_table([("", "tokens", "tokens/s", "peak, MB", "encoder"), *rows])
    result = {
        "ours_tok_s": ours["tok_s"],
        "loop_tok_s": loop["tok_s"],
        "ratio": ours["tok_s"] / loop["tok_s"],
        "bytes_per_token": (ours["peak"] - fifth["peak"]) / (ours["tokens"] - fifth["tokens"]),
        "ids_identical": bool(same),
        "loop_peak_mb": loop["peak"] / 1e6,
        "ours_peak_mb": ours["peak"] / 1e6,
    }
    sentence = f"{result['ratio']:.1f} times the speed of the loop, {result['bytes_per_token']:.2f} bytes per token"
    print_result(result, f"{sentence}, ids {'identical' if same else 'DIFFERENT'}")


def write_tokenizer(wheel: Path, folder: Path) -> None:
    """Write Llama 3's tokenizer as a Hugging Face folder, from the tiktoken ranks in the wheel."""
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    class Converter(TikTokenConverter):
        @staticmethod
        def load_tiktoken_bpe(content: str) -> dict[bytes, int]:  # transformers 5.23
            pairs = (line.split() for line in content.splitlines() if line)
            return {base64.b64decode(token): int(rank) for token, rank in pairs}

    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith("llama3/tokenizer.model"))
        ranks = archive.read(name).decode()
    special = ["<|begin_of_text|>", "<|end_of_text|>"]
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    fast = Converter(vocab_file=ranks, pattern=pattern, extra_special_tokens=special).converted()
    PreTrainedTokenizerFast(tokenizer_object=fast, bos_token=special[0], eos_token=special[1]).save_pretrained(folder)


def measure(side: str, tokenizer: Path, megabytes: float, out: Path) -> dict:
    """Run one side in its own process and return its result."""
    options = ["--side", side, "--megabytes", str(megabytes), "--out", str(out)]
    command = [sys.executable, __file__, str(tokenizer), *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return json.loads(done.stdout.splitlines()[-1])


def encode_ours(folder: Path, megabytes: float, out: Path) -> None:
    from utils.tokenizer import load_tokenizer, write_documents

    tokenizer = load_tokenizer(str(folder))
    files = text_files()
    start = time.monotonic()
    sidecar = write_documents(out, lambda: read_texts(files, megabytes), tokenizer, {})
    print_measurement(sidecar["tokens"], time.monotonic() - start, sidecar["encoder"])


def encode_loop(folder: Path, megabytes: float, out: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    files = text_files()
    start, ids = time.monotonic(), []
    for text in read_texts(files, megabytes):
        ids.extend(tokenizer.encode(text))
        ids.append(tokenizer.eos_token_id)
    np.array(ids, np.int32).tofile(out)
    print_measurement(len(ids), time.monotonic() - start, "transformers")


def text_files() -> list[Path]:
    files = Path(sysconfig.get_paths()["purelib"]).rglob("*")
    return sorted(path for path in files if path.suffix in SUFFIXES and path.is_file())


def read_texts(files: list[Path], megabytes: float) -> Iterator[str]:
    """The UTF-8 texts up to the one that reaches `megabytes`. Raises UserError if there are too few."""
    missing = megabytes * 1e6
    for path in files:
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        yield text
        missing -= len(text.encode())
        if missing <= 0:
            return
    raise UserError(f"--megabytes: site-packages has only {megabytes - missing / 1e6:.0f} MB of text; give less")


def print_measurement(tokens: int, seconds: float, encoder: str) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"tokens": tokens, "tok_s": tokens / seconds, "peak": peak, "encoder": encoder}))


if __name__ == "__main__":
    run(main)
