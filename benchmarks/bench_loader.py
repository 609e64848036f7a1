"""How long a training step waits for its data: blocks/s of our datasets, and the share of a step.

    python benchmarks/bench_loader.py

A token file of 200 million random tokens, its documents 700 tokens long, with 10% replay; blocks of
2,048 in the order of a plan, through torch's DataLoader as the Trainer uses it, from a cold start.
A step of 16 blocks is set against Llama 3 8B's at 50% of an H100's peak. The last line is one JSON
object.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

STEP_TOKENS, FLOPS, HALF_AN_H100 = 16 * 2048, 48.2e9, 0.5 * 989e12


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--tokens", type=int, default=200_000_000, help="of the training text (default 200M)")
    add("--blocks", type=int, default=20_000, help="how many to read (default 20,000)")
    return parser.parse_args()


def write(path: Path, tokens: int) -> np.ndarray:
    ids = np.random.default_rng(0).integers(0, 128_256, tokens, dtype=np.int32)
    ids.tofile(path)
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return np.memmap(path, np.int32, "r")


def main() -> None:
    args = parse_arguments()
    from torch.utils.data import DataLoader
    from transformers import default_data_collator

    from data import cptdata

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        ids = write(Path(folder) / "train.bin", args.tokens)
        replay = write(Path(folder) / "replay.bin", args.tokens // 5)
        ends = np.append(np.arange(700, len(ids), 700), len(ids))
        begun = time.perf_counter()
        plan = cptdata.make_plan(len(ids) // 2048, len(replay) // 2048, 2, 0.1, 16, seed=0)
        print(f"plan of {len(plan):,} blocks: {time.perf_counter() - begun:.3f} s")
        for kind, all_ends in (("packed", None), ("masked documents", ends)):
            loader = DataLoader(
                cptdata.Blocks(
                    plan, *(cptdata.Text(part, 2048, all_ends) for part in (ids, replay))
                ),
                batch_size=2,
                collate_fn=default_data_collator,
            )
            begun = time.perf_counter()
            read = sum(len(batch["labels"]) for batch in islice(loader, args.blocks // 2))
            rows.append((kind, read / (time.perf_counter() - begun)))
    step = STEP_TOKENS * FLOPS / HALF_AN_H100
    print(f"{'blocks':18} {'blocks/s':>10} {'of a step of ' + format(step, '.1f') + ' s':>20}")
    for kind, rate in rows:
        print(f"{kind:18} {rate:10,.0f} {16 / rate / step:20.3%}")
    print(json.dumps({
        "packed_blocks_s": round(rows[0][1]), "masked_blocks_s": round(rows[1][1]),
        "share_of_step": round(16 / min(rate for _, rate in rows) / step, 5),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
