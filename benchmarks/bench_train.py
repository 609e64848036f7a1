"""Training steps of train.py against a plain Trainer with the settings of the original README: tokens/s, losses, memory.

    python scripts/example_model.py          # SmolLM2-135M: the weights and tokenizer of the benchmark
    python benchmarks/bench_train.py         # on a CPU: five rounds, 15 to 20 minutes
    python benchmarks/bench_train.py --precision fp32     # both sides in fp32
    python benchmarks/bench_train.py --shape llama-3-8b --bs 4 --block_size 2048 --rounds 1    # on a GPU

Both sides get the same weights, blocks, batch size, steps and learning rate. By default ours takes train.py's choice
of precision, and on a CPU the plain Trainer runs in bf16 and in fp32; its faster one counts. Each round runs all in
new processes, one after the other, ours with the environment of scripts/train.sh. Warm-up steps, in which torch
compiles, are not counted. `llama-3-8b` has random weights; its plain side has bf16 weights and checkpoints all
layers, because fp32 weights do not fit, so the losses of the two sides differ in precision.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from reports.tables import print_table
from utils import paths
from utils.cli import make_parser, non_negative_int, positive_int, print_result
from utils.errors import UserError, run

RECIPE = {"lr": 5e-6, "wd": 0.01, "warmup": 0.05}  # the original README's
SMOLLM2_WIDTHS = (576, 1536)  # hidden and intermediate
PLAIN = {"bf16": "plain-bf16", "fp32": "plain-fp32"}  # the plain Trainer, by precision
LLAMA_3_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--shape", choices=["smollm2-135m", "llama-3-8b"], default="smollm2-135m", help="the model")
    add("--bs", type=positive_int, default=2, help="blocks per step")
    add("--block_size", type=positive_int, default=512, help="tokens per block")
    add("--steps", type=positive_int, default=10, help="steps per round, the warm-up included")
    add("--warm_up", type=non_negative_int, default=3, help="steps not counted")
    add("--rounds", type=positive_int, default=5, help="runs of each side")
    precision_help = "of both sides; auto: train.py's choice, against the plain Trainer's faster one"
    add("--precision", choices=["auto", "bf16", "fp32"], default="auto", help=precision_help)
    add("--optim_state_dtype", default="fp32", help="of our side's optimizer")
    add("--worker", choices=["ours", *PLAIN.values()], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.warm_up >= args.steps:
        raise UserError(f"--warm_up {args.warm_up}: leaves no step to measure; give a larger --steps")
    return args


def main() -> None:
    args = parse_arguments()
    if args.worker:
        with tempfile.TemporaryDirectory() as folder:
            (train_ours if args.worker == "ours" else train_plain)(args, Path(folder))
        return
    results = {side: [] for side in sides(args)}
    print(f"{'round':>5} {'side':>10} {'tokens/s':>9} {'first step, s':>14} {'peak, GiB':>10}")
    for number in range(args.rounds):
        for side, rounds in results.items():
            rounds.append(measure(side))
            numbers = "{tok_s:9.1f} {first_s:14.1f} {peak_gib:10.2f}".format_map(rounds[-1])
            print(f"{number:5} {side:>10} {numbers}", flush=True)
    precision = results["ours"][0]["precision"]
    losses = [results[side][0]["losses"] for side in ("ours", PLAIN[precision])]
    rows = [(step, f"{a:.5f}", f"{b:.5f}") for step, (a, b) in enumerate(zip(*losses, strict=True), 1)]
    print_table([("step", "ours, loss", "plain, loss"), *rows])
    speeds = {side: median(one["tok_s"] for one in rounds) for side, rounds in results.items()}
    ours, plain = speeds.pop("ours"), max(speeds.values())
    result = {
        "precision": precision,
        "ours_tok_s": round(ours, 1),
        "plain_tok_s": round(plain, 1),
        "ratio": round(ours / plain, 3),
        "max_loss_diff": max(abs(a - b) for a, b in zip(*losses, strict=True)),
        "mfu": results["ours"][0]["mfu"],
        "peak_gib": round(max(one["peak_gib"] for one in results["ours"]), 2),
    }
    sentence = f"{ours:.1f} tokens/s in {precision} against {plain:.1f} in {max(speeds, key=speeds.get)[6:]}: {ours / plain:.3f} times the speed"
    print_result(result, f"{sentence}, largest difference of losses {result['max_loss_diff']:.1e}")


def sides(args: argparse.Namespace) -> list[str]:
    """The sides to measure. With `auto` on a CPU the plain Trainer runs in both precisions, unless products of the
    model's shapes take several times as long in one of them."""
    import torch

    from training import precision

    if args.precision != "auto" or torch.cuda.is_available():
        return ["ours", PLAIN["fp32" if args.precision == "fp32" else "bf16"]]
    times = precision.time_products(*SMOLLM2_WIDTHS)
    return [
        "ours",
        *(PLAIN[name] for name, seconds in times.items() if seconds < precision.EMULATED * min(times.values())),
    ]


def measure(side: str) -> dict:
    """Run one side in its own process and return its result."""
    command = [sys.executable, __file__, *sys.argv[1:], "--worker", side]
    if side == "ours":
        source = f'source "{paths.ROOT}/scripts/cpu_env.sh"; exec "$@"'
        command = ["bash", "-c", source, "bash", *command]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def train_ours(args: argparse.Namespace, folder: Path) -> None:
    """Train as train.py does, by training/trainer.py."""
    import torch

    from training import trainer
    from training.memory import fit_memory
    from training.precision import choose_precision
    from training.settings import TrainingSettings

    model = load_model(args, torch.float32)
    model.config.use_cache = False
    settings = TrainingSettings(
        **RECIPE,
        bs=args.bs,
        seed=0,
        block_size=args.block_size,
        save_steps=10**6,
        keep_checkpoints=1,
        precision=choose_precision(args.precision, model.config),
        optim_state_dtype=args.optim_state_dtype,
        compiled=True,
    )
    settings, memory = fit_memory(model, settings, "auto")
    print(memory, file=sys.stderr)
    trainer.save = lambda *_: None  # 32 GB of random weights
    trainer.train(model, None, (ArticleBlocks(args), None), settings, folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    seconds = [line["seconds"] for line in lines]
    print_measurement(args, model, [line["loss"] for line in lines], seconds, settings.precision)


def train_plain(args: argparse.Namespace, folder: Path) -> None:
    """Train by transformers' Trainer with the settings of the original README, and defaults for all others."""
    import torch
    from transformers import Trainer, TrainerCallback

    model = load_model(args, torch.bfloat16 if args.shape == "llama-3-8b" else torch.float32)
    ends = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_, **__) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            ends.append(time.perf_counter())

    settings = plain_settings(args, folder)
    trainer = Trainer(model=model, args=settings, train_dataset=ArticleBlocks(args), callbacks=[Clock()])
    start = time.perf_counter()
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    seconds = [b - a for a, b in zip([start, *ends], ends, strict=False)]
    print_measurement(args, model, losses, seconds, args.worker.removeprefix("plain-"))


def plain_settings(args: argparse.Namespace, folder: Path):
    import torch
    from transformers import TrainingArguments

    large = args.shape == "llama-3-8b"
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=1 if large else args.bs,
        gradient_accumulation_steps=args.bs if large else 1,
        gradient_checkpointing=large,
        learning_rate=RECIPE["lr"],
        weight_decay=RECIPE["wd"],
        warmup_steps=RECIPE["warmup"],
        lr_scheduler_type="cosine",
        train_sampling_strategy="sequential",
        max_steps=args.steps,
        bf16=args.worker == PLAIN["bf16"],
        use_cpu=not torch.cuda.is_available(),
        logging_steps=1,
        save_strategy="no",
        report_to="none",
    )


class ArticleBlocks:
    """The example articles as blocks in file order, repeated; random tokens for llama-3-8b."""

    def __init__(self, args: argparse.Namespace):
        import torch

        self.length, self.block_size = args.bs * args.steps, args.block_size
        if args.shape == "llama-3-8b":
            self.ids = torch.randint(LLAMA_3_8B["vocab_size"], (self.length * args.block_size,))
            return
        from utils.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(str(paths.example_model()))
        lines = (paths.example_dir() / "articles.jsonl").read_text().splitlines()
        text = "\n".join(json.loads(line)["article"] for line in lines)
        self.ids = torch.tensor(tokenizer(text)["input_ids"])

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        begin = index * self.block_size % (len(self.ids) - self.block_size + 1)
        ids = self.ids[begin : begin + self.block_size]
        return {"input_ids": ids, "labels": ids}

    def name(self, index: int) -> str:
        return f"block {index}"


def load_model(args: argparse.Namespace, dtype):
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    if args.shape == "smollm2-135m":
        return AutoModelForCausalLM.from_pretrained(paths.example_model(), dtype=dtype)
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with torch.device("cuda"):
        model = LlamaForCausalLM(LlamaConfig(**LLAMA_3_8B))
    torch.set_default_dtype(torch.float32)
    return model


def print_measurement(args: argparse.Namespace, model, losses: list, seconds: list, precision: str) -> None:
    """Print losses, speed, MFU and peak memory (of the GPU, else of the process) as one JSON line."""
    import torch

    from training.flops import flops_per_token, mfu, model_shape

    rate = args.bs * args.block_size / median(seconds[args.warm_up :])
    flops = flops_per_token(model_shape(model), args.block_size)
    gpu = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() if gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    used = mfu(rate, flops, torch.cuda.get_device_name(0), 1) if gpu else None
    result = {
        "precision": precision,
        "losses": losses,
        "first_s": seconds[0],
        "tok_s": rate,
        "mfu": used,
        "peak_gib": peak / 2**30,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    run(main)
