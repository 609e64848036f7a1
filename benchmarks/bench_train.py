"""Our training step against a plain Trainer with the seed README's settings: tokens/s, losses, memory.

    python scripts/example_model.py          # SmolLM2-135M, whose weights and tokenizer are trained
    python benchmarks/bench_train.py         # on a CPU: five rounds, 15 to 20 minutes
    python benchmarks/bench_train.py --precision fp32     # what train.py takes on a CPU without AMX
    python benchmarks/bench_train.py --shape llama-3-8b --bs 4 --block_size 2048 --rounds 1    # on a GPU

Both sides see the same weights, blocks, batch, steps and rate, in the same precision; each round
starts ours and theirs anew, one after the other, as a user would: ours with scripts/train.sh's
environment. Steps of the warm-up, in which torch compiles, are not counted. `llama-3-8b` has random
weights; its plain side has bf16 weights and recomputes all layers, since fp32 ones do not fit, so its
losses are of another precision. The last line is one JSON object.
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

ROOT = Path(__file__).resolve().parent.parent
RECIPE = {"lr": 5e-6, "wd": 0.01, "warmup": 0.05}  # of the seed README
LLAMA_3_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--shape", choices=["smollm2-135m", "llama-3-8b"], default="smollm2-135m")
    add("--bs", type=int, default=2, help="blocks per step (default 2)")
    add("--block_size", type=int, default=512, help="tokens per block (default 512)")
    add("--steps", type=int, default=10, help="of a round, the warm-up included (default 10)")
    add("--warm_up", type=int, default=3, help="steps that are not counted (default 3)")
    add("--rounds", type=int, default=5, help="default 5")
    add(
        "--precision",
        choices=["auto", "bf16", "fp32"],
        default="bf16",
        help="of both sides (default bf16, the seed README's; auto: what train.py takes here)",
    )
    add("--optim_state_dtype", default="fp32", help="of ours (default fp32)")
    add("--worker", choices=["ours", "plain"], help=argparse.SUPPRESS)
    return parser.parse_args()


class Texts:
    """The example articles as blocks in file order, over and over."""

    def __init__(self, args: argparse.Namespace):
        import torch

        self.number, self.size = args.bs * args.steps, args.block_size
        if args.shape == "llama-3-8b":
            self.ids = torch.randint(128256, (args.bs * args.steps * args.block_size,))
            return
        from utils import paths
        from utils.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(str(paths.ckpts_dir() / "SmolLM2-135M-Instruct"))
        lines = (ROOT / "data/example/articles.jsonl").read_text().splitlines()
        text = "\n".join(json.loads(line)["article"] for line in lines)
        self.ids = torch.tensor(tokenizer(text)["input_ids"])

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> dict:
        begin = index * self.size % (len(self.ids) - self.size + 1)
        ids = self.ids[begin : begin + self.size]
        return {"input_ids": ids, "labels": ids}

    def name(self, index: int) -> str:
        return f"block {index}"


def load(args: argparse.Namespace, dtype):
    """The same weights on both sides."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    from utils import paths

    if args.shape == "smollm2-135m":
        folder = paths.ckpts_dir() / "SmolLM2-135M-Instruct"
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with torch.device("cuda"):
        model = LlamaForCausalLM(LlamaConfig(**LLAMA_3_8B))
    torch.set_default_dtype(torch.float32)
    return model


def ours(args: argparse.Namespace, folder: Path) -> None:
    """training/trainer.py, as train.py calls it."""
    import torch

    from training import trainer
    from training.memory import fit_memory
    from training.settings import TrainingSettings
    from utils.device import choose_precision

    model = load(args, torch.float32)
    model.config.use_cache = False
    settings = TrainingSettings(
        **RECIPE,
        bs=args.bs,
        seed=0,
        block_size=args.block_size,
        save_steps=10**6,
        keep_checkpoints=1,
        precision=choose_precision(args.precision),
        optim_state_dtype=args.optim_state_dtype,
        compiled=True,
    )
    settings, memory = fit_memory(model, settings, "auto")
    print(memory, file=sys.stderr)
    trainer.save = lambda *_: None  # 32 GB of random weights
    trainer.train(model, None, (Texts(args), None), settings, folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    report(args, model, [line["loss"] for line in lines], [line["seconds"] for line in lines])


def plain(args: argparse.Namespace, folder: Path) -> None:
    """transformers' Trainer with what the seed README names, and its defaults."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from utils.device import choose_precision

    large = args.shape == "llama-3-8b"
    model = load(args, torch.bfloat16 if large else torch.float32)
    ends = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_, **__) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            ends.append(time.perf_counter())

    arguments = TrainingArguments(
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
        bf16=choose_precision(args.precision) == "bf16",
        use_cpu=not torch.cuda.is_available(),
        logging_steps=1,
        save_strategy="no",
        report_to="none",
    )
    running = Trainer(model=model, args=arguments, train_dataset=Texts(args), callbacks=[Clock()])
    begun = time.perf_counter()
    running.train()
    losses = [entry["loss"] for entry in running.state.log_history if "loss" in entry]
    report(args, model, losses, [b - a for a, b in zip([begun, *ends], ends, strict=False)])


def report(args: argparse.Namespace, model, losses: list[float], seconds: list[float]) -> None:
    import torch

    from training.flops import flops_per_token, mfu, model_shape

    rate = args.bs * args.block_size / median(seconds[args.warm_up :])
    flops = flops_per_token(model_shape(model), args.block_size)
    gpu = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() if gpu else None
    print(
        json.dumps(
            {
                "losses": losses,
                "first_s": seconds[0],
                "tok_s": rate,
                "mfu": mfu(rate, flops, torch.cuda.get_device_name(0), 1) if gpu else None,
                "peak_gib": (peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / 2**30,
            }
        )
    )


def measure(side: str) -> dict:
    """One side in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--worker", side]
    if side == "ours":
        source = f'source {ROOT / "scripts/cpu_env.sh"}; exec "$@"'
        command = ["bash", "-c", source, "bash", *command]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    args = parse_arguments()
    sys.path.insert(0, str(ROOT))
    if args.worker:
        with tempfile.TemporaryDirectory() as folder:
            {"ours": ours, "plain": plain}[args.worker](args, Path(folder))
        return
    results = {"ours": [], "plain": []}
    print(f"{'round':>5} {'side':>6} {'tokens/s':>9} {'first step, s':>14} {'peak, GiB':>10}")
    for number in range(args.rounds):
        for side in results:
            result = measure(side)
            results[side].append(result)
            print(
                f"{number:5} {side:>6} {result['tok_s']:9.1f} {result['first_s']:14.1f} {result['peak_gib']:10.2f}",
                flush=True,
            )
    losses = [results[side][0]["losses"] for side in results]
    print("\nstep  ours     plain")
    for step, (a, b) in enumerate(zip(*losses, strict=True), 1):
        print(f"{step:4}  {a:.5f}  {b:.5f}")
    rates = {side: median(r["tok_s"] for r in rounds) for side, rounds in results.items()}
    mfu = results["ours"][0]["mfu"]
    print(
        json.dumps(
            {
                "ours_tok_s": round(rates["ours"], 1),
                "plain_tok_s": round(rates["plain"], 1),
                "ratio": round(rates["ours"] / rates["plain"], 3),
                "max_loss_diff": max(abs(a - b) for a, b in zip(*losses, strict=True)),
                "mfu": mfu,
                "peak_gib": round(max(r["peak_gib"] for r in results["ours"]), 2),
            }
        )
    )


if __name__ == "__main__":
    main()
