"""Step 2's encoding against the usual loop that appends ids to a Python list: tokens/s, memory, ids.

    pip download llama-models==0.3.0 --no-deps -d /tmp/llama    # Llama 3's real tokenizer is in it
    python benchmarks/bench_tokenize.py /tmp/llama/*.whl

Text: the sources and documents that lie in this Python's site-packages, a document a file, in order
of path, until there are enough (default 100 MB). Each side runs in a process of its own; both write
their ids, which are compared. The last line is one JSON object.
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

SUFFIXES = {".py", ".pyi", ".md", ".rst", ".txt", ".h", ".c", ".cpp", ".js", ".html"}


def make_tokenizer(wheel: Path, folder: Path) -> None:
    """Llama 3's tokenizer as a Hugging Face folder, from the tiktoken ranks in the wheel."""
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    class Converter(TikTokenConverter):
        @staticmethod
        def load_tiktoken_bpe(content: str) -> dict[bytes, int]:
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


def find_files() -> list[Path]:
    found = Path(sysconfig.get_paths()["purelib"]).rglob("*")
    return sorted(path for path in found if path.suffix in SUFFIXES and path.is_file())


def texts(files: list[Path], megabytes: float) -> Iterator[str]:
    left = megabytes * 1e6
    for path in files:
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        yield text
        left -= len(text.encode())
        if left <= 0:
            return
    raise SystemExit(f"site-packages holds {megabytes - left / 1e6:.0f} MB of text only")


def ours(folder: Path, megabytes: float, out: Path) -> None:
    from utils.tokenizer import load_tokenizer, write_documents

    tokenizer = load_tokenizer(str(folder))
    files = find_files()
    begun = time.monotonic()
    made = write_documents(out, lambda: texts(files, megabytes), tokenizer, {})
    report(made["tokens"], time.monotonic() - begun, made["encoder"])


def loop(folder: Path, megabytes: float, out: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    files = find_files()
    begun, ids = time.monotonic(), []
    for text in texts(files, megabytes):
        ids.extend(tokenizer.encode(text))
        ids.append(tokenizer.eos_token_id)
    np.array(ids, np.int32).tofile(out)
    report(len(ids), time.monotonic() - begun, "transformers")


def report(tokens: int, seconds: float, encoder: str) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"tokens": tokens, "tok_s": tokens / seconds, "peak": peak, "encoder": encoder}))


def measure(side: str, folder: Path, megabytes: float, out: Path) -> dict:
    command = [sys.executable, __file__, str(folder), "--side", side]
    done = subprocess.run(
        [*command, "--megabytes", str(megabytes), "--out", str(out)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, help="the llama-models wheel")
    parser.add_argument("--megabytes", type=float, default=100, help="default 100")
    parser.add_argument("--side", choices=["ours", "loop"], help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        {"ours": ours, "loop": loop}[args.side](args.wheel, args.megabytes, args.out)
        return
    with tempfile.TemporaryDirectory() as name:
        folder, found, files = Path(name), {}, {}
        make_tokenizer(args.wheel, folder / "llama3")
        for key, side, size in (
            ("a fifth", "ours", args.megabytes / 5),
            ("ours", "ours", args.megabytes),
            ("loop", "loop", args.megabytes),
        ):
            files[key] = folder / f"{key.replace(' ', '')}.bin"
            found[key] = measure(side, folder / "llama3", size, files[key])
            row = found[key]
            print(
                f"{key:10}{row['tokens']:>14,} tokens{row['tok_s']:>14,.0f} tokens/s"
                f"{row['peak'] / 1e6:>10,.0f} MB  {row['encoder']}"
            )
        same = np.array_equal(*(np.fromfile(files[key], np.int32) for key in ("ours", "loop")))
    grown = found["ours"]["peak"] - found["a fifth"]["peak"]
    result = {
        "ours_tok_s": found["ours"]["tok_s"],
        "loop_tok_s": found["loop"]["tok_s"],
        "ratio": found["ours"]["tok_s"] / found["loop"]["tok_s"],
        "bytes_per_token": grown / (found["ours"]["tokens"] - found["a fifth"]["tokens"]),
        "ids_identical": bool(same),
        "loop_peak_mb": found["loop"]["peak"] / 1e6,
        "ours_peak_mb": found["ours"]["peak"] / 1e6,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
