"""Step 4: continued pretraining, and instruction tuning.

    ./scripts/train.sh --lr 5e-06 --rr 0.1 --epochs 2 --bs 16 --wd 0.01 --warmup 0.05 --task_name quality
    ./scripts/train.sh --lr 5e-06 --rr 0.1 --epochs 2 --bs 128 --wd 0.01 --warmup 0.05 --task_name instruct \\
        --model_name ckpts/quality-lr5e-06-rr0.1-epochs2-bs16-wd0.01-warmup0.05-MetaLlama38B

Writes ckpts/<task>-lr…-rr…-epochs…-bs…-wd…-warmup…-<model>/: weights, tokenizer, run.json,
metrics.jsonl; of instruction tuning the chat template too. The same command goes on where a killed one stopped; a finished run is left alone.
scripts/train.sh starts one process per GPU, and one on a machine without.
"""

import argparse
import math
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

from data import cptdata
from utils import paths
from utils.io import UserError, read_json, run, write_json
from utils.token_file import TokenFile


class Typed(float):
    """A number that remembers how it was typed: run names bear `5e-06` as `5e-06`."""

    def __new__(cls, text: str) -> "Typed":
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __str__(self) -> str:
        return self.text


# fmt: off
def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    recipe_arguments(parser.add_argument_group("the recipe"))
    machine_arguments(parser.add_argument_group("how it is run"))
    args = parser.parse_args()
    check(args)
    return args


def recipe_arguments(group: argparse.ArgumentParser) -> None:
    add = group.add_argument
    add("--lr", type=Typed, default="5e-06", help="peak learning rate (default 5e-06)")
    add("--rr", type=Typed, default="0.1", help="share of the blocks that are replay (default 0.1)")
    add("--epochs", type=Typed, default="2", help="over the synthetic text; 0.5 is half of it (default 2)")
    add("--bs", type=Typed, default="16", help="blocks per optimizer step, over all GPUs (default 16)")
    add("--wd", type=Typed, default="0.01", help="weight decay (default 0.01)")
    add("--warmup", type=Typed, default="0.05", help="share of the steps (default 0.05)")
    add("--task_name", default="quality", help="quality, example or your own; -raw, -rephrase, -qa, -strategies behind it for other text; instruct for conversations (default quality)")
    add("--model_name", default=paths.DEFAULT_TOKENIZER, help="hub name or checkpoint folder (default %(default)s)")
    add("--model", default=paths.DEFAULT_GENERATOR, help="the generator of the passages (default %(default)s)")
    add("--conversations", default=paths.DEFAULT_CONVERSATIONS, help="name of their files, for --task_name instruct (default %(default)s)")
    add("--replay", default=paths.DEFAULT_REPLAY, help="name of the replay files (default %(default)s)")
    add("--block_size", type=int, default=2048, help="tokens per block (default 2048)")
    add("--subsample_ratio", type=Typed, default="1", help="share of the documents; smaller lie in larger (default 1)")
    add("--mask_documents", action="store_true", help="keep attention inside a document (default: packed, as in the paper)")
    add("--lora_rank", type=int, default=0, help="train low-rank adapters alone (default 0: all weights)")
    add("--seed", type=int, default=0, help="of the data's order (default 0)")


def machine_arguments(group: argparse.ArgumentParser) -> None:
    add = group.add_argument
    add("--save_steps", type=int, default=500, help="steps between checkpoints (default 500)")
    add("--keep_checkpoints", type=int, default=2, help="the newest so many, until the run is finished (default 2)")
    add("--run_eval", action="store_true", help="held-out replay loss at every checkpoint, not only before and after")
    add("--eval_blocks", type=int, default=256, help="held-out replay blocks (default 256)")
    add("--precision", choices=["auto", "bf16", "fp32"], default="auto", help="of the arithmetic; weights are fp32 (default auto)")
    add("--micro_batch", type=int, help="blocks per forward pass and GPU (default: what 4,096 tokens allow)")
    add("--gradient_checkpointing", nargs="?", const="all", default="auto", metavar="LAYERS", help="layers computed twice, a number or all: less memory, up to a third more arithmetic (default: on a GPU as few as fit)")
    add("--optim_state_dtype", choices=["fp32", "bf16", "int8"], default="fp32", help="of AdamW's moments: 8, 4 or 2 bytes a parameter (default fp32)")
    add("--compile", choices=["auto", "on", "off"], default="auto", help="torch.compile (default: where the run is long enough to gain)")
    add("--sharding", choices=["auto", "none", "full", "hybrid"], default="auto", help="of the model: over all GPUs, or (hybrid) those of a node (default: over all)")
    add("--report_to", choices=["none", "wandb"], default="none")


def check(args: argparse.Namespace) -> None:
    for name in (
        "lr",
        "epochs",
        "bs",
        "block_size",
        "save_steps",
        "keep_checkpoints",
        "eval_blocks",
    ):
        if not 0 < getattr(args, name) < math.inf:
            raise UserError(f"--{name} {getattr(args, name)}: must be a number above 0")
    if args.bs != int(args.bs):
        raise UserError(f"--bs {args.bs}: a whole number of blocks")
    if args.micro_batch is not None and args.micro_batch < 1:
        raise UserError(f"--micro_batch {args.micro_batch}: must be above 0")
    layers = args.gradient_checkpointing
    if layers not in ("auto", "all") and not layers.isdecimal():
        raise UserError(f"--gradient_checkpointing {layers}: a number of layers, or all")
    for name in ("seed", "lora_rank"):
        if getattr(args, name) < 0:
            raise UserError(f"--{name} {getattr(args, name)}: must not be below 0")
    for name in ("wd", "warmup", "rr"):
        if not 0 <= getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: from 0 to below 1")


def run_name(args: argparse.Namespace) -> str:
    model = paths.short_name(args.model_name).replace("-", "")
    name = (
        f"{args.task_name}-lr{args.lr}-rr{args.rr}-epochs{args.epochs}-bs{args.bs}"
        f"-wd{args.wd}-warmup{args.warmup}-{model}"
    )
    if args.lora_rank:
        name = f"{name}-lora{args.lora_rank}"
    if args.subsample_ratio != 1:
        name = f"scaling-subsample_ratio{args.subsample_ratio}-{name}"
    return name


def main() -> None:
    args = parse_arguments()
    folder = paths.ckpts_dir() / run_name(args)
    files = open_files(args)

    from transformers.utils import logging

    from training import trainer
    from training.flops import flops_per_token, shape_of
    from training.model import add_lora, keep_inside_documents
    from training.settings import choose_compile, choose_micro_batch, fit_memory, is_main_process
    from utils import chat_template
    from utils.checkpoint import tidy
    from utils.tokenizer import fingerprint, load_tokenizer

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    settings = choose_settings(args)
    choose_micro_batch(settings)  # what does not divide is said before a model is loaded
    tokenizer = load_tokenizer(args.model_name, "--model_name")
    if template := files["train"].meta.get("template"):
        tokenizer.chat_template = template  # saved beside the weights
    blocks, held_out = make_datasets(args, files)
    record = describe(args, settings, files)
    if is_finished(folder, record):
        if is_main_process():
            tidy(folder)
            print(f"{folder}: finished already; delete the folder to train it again")
        return
    model = trainer.load_model(args.model_name)
    if template:
        model.generation_config.eos_token_id = chat_template.end_ids(tokenizer)
    if args.mask_documents:
        keep_inside_documents(model)
    if args.lora_rank:
        model = add_lora(model, args.lora_rank, args.seed, settings.precision == "bf16")
    settings, memory = fit_memory(model, settings, args.gradient_checkpointing)
    flops = len(blocks) * args.block_size * flops_per_token(shape_of(model), args.block_size)
    settings = replace(settings, compiled=choose_compile(args.compile, flops))
    fingerprint = fingerprint(tokenizer)
    for file in files.values():
        file.check_vocabulary(fingerprint, model.config.vocab_size, args.model_name)
    if is_main_process():
        print(
            f"{len(blocks):,} blocks of {args.block_size}, {blocks.plan.replay_share():.1%} replay, {settings.precision} -> {folder}"
        )
        print(memory)
        record["settings"] = asdict(settings)
        write_json(folder / "run.json", record)
    result = trainer.train(model, tokenizer, blocks, held_out, settings, folder)
    if is_main_process():
        write_json(folder / "run.json", record | {"finished": True} | result)
        tidy(folder)
        print(
            f"{folder}: {result['tokens']:,} tokens at {result['tokens_per_s']:,} tokens/s, last loss {result['last_losses'][-1]:.3f}"
        )
        if held_out:
            print(
                f"held-out {'conversations' if template else 'replay'}: loss {result['held_out_loss_before']:.3f} before, {result['held_out_loss_after']:.3f} after"
            )


def choose_settings(args: argparse.Namespace):
    from training.settings import Settings, choose_precision, choose_sharding

    return Settings(
        lr=float(args.lr),  # Typed ends here: a checkpoint holds no class of ours
        bs=int(args.bs),
        wd=float(args.wd),
        warmup=float(args.warmup),
        seed=args.seed,
        block_size=args.block_size,
        save_steps=args.save_steps,
        keep_checkpoints=args.keep_checkpoints,
        precision=choose_precision(args.precision),
        optim_state_dtype=args.optim_state_dtype,
        micro_batch=args.micro_batch,
        sharding=choose_sharding(args.sharding, args.lora_rank),
        lora_rank=args.lora_rank,
        run_eval=args.run_eval,
        report_to=args.report_to,
    )


def open_files(args: argparse.Namespace) -> dict:
    """The token files of the run, each read once to see that it is the one its sidecar describes."""
    files = {"train": cptdata.open_training_file(args.task_name, args.model, args.conversations)}
    if args.rr:
        files["replay"] = cptdata.open_replay_file(args.replay, "train")
    if args.task_name == cptdata.INSTRUCT:
        files["held_out"] = cptdata.open_conversations(args.conversations, "test")
        must_match = files["train"]
    elif args.rr:
        files["held_out"] = cptdata.open_replay_file(args.replay, "test")
        must_match = files["replay"]
    for file in files.values():
        file.verify()
    if "held_out" in files and made_by_other_runs(must_match, files["held_out"]):
        raise UserError(
            f"{must_match.path} and {files['held_out'].path.name}: not made by one run, so held-out "
            f"text may be trained on; {must_match.made_by}"
        )
    return files


def made_by_other_runs(one: TokenFile, other: TokenFile) -> bool:
    keys = ("seed", "sources", "test_share", "template_sha256", "learnt", "block_size")
    return any(one.meta.get(key) != other.meta.get(key) for key in keys)


def make_datasets(
    args: argparse.Namespace, files: dict
) -> tuple[cptdata.Blocks, cptdata.Blocks | None]:
    inside = args.mask_documents
    synthetic = cptdata.source_of(
        files["train"], args.block_size, args.seed, inside, args.subsample_ratio
    )
    replay, test = (
        cptdata.source_of(files[name], args.block_size, args.seed, inside) if name in files else ()
        for name in ("replay", "held_out")
    )
    plan = cptdata.make_plan(
        len(synthetic), len(replay), args.epochs, args.rr, int(args.bs), args.seed
    )
    return cptdata.Blocks(plan, synthetic, replay), cptdata.held_out(test, args.eval_blocks)


def describe(args: argparse.Namespace, settings, files: dict) -> dict:
    """What goes into run.json before the first step."""
    arguments = {
        name: str(value) if isinstance(value, Typed) else value
        for name, value in vars(args).items()
    }
    data = {
        name: {"file": str(file.path)}
        | {key: file.meta[key] for key in ("sha256", "mask_sha256") if key in file.meta}
        for name, file in files.items()
    }
    return {
        "arguments": arguments,
        "settings": asdict(settings),
        "data": data,
        "base": paths.weights_state(args.model_name),
        "code": code_revision(),
        "finished": False,
    }


def code_revision() -> str:
    """The commit, with a + where the tree differs from it; `unknown` outside a git checkout."""
    command = ["git", "-C", str(paths.ROOT), "describe", "--always", "--dirty=+", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def is_finished(folder: Path, record: dict) -> bool:
    """Whether the folder holds this run, finished. Another run under the same name (other data,
    another seed) is refused: its checkpoints must not be gone on from."""
    if not (folder / "run.json").is_file():
        return False
    earlier = read_json(folder / "run.json", "delete the folder")
    there, now = identity(earlier), identity(record)
    for name, value in now.items():
        if there.get(name) != value:
            raise UserError(
                f"{folder}: holds a run with other {name} ({there.get(name)} there, {value} now); "
                "delete or rename that folder"
            )
    return earlier["finished"] and any(folder.glob("*.safetensors"))


def identity(record: dict) -> dict:
    """What of a run.json decides the result, by name; how often a run saves or looks does not."""
    free = {"conversations", "save_steps", "keep_checkpoints", "run_eval", "eval_blocks", "report_to", "micro_batch", "precision",
            "gradient_checkpointing", "compile", "sharding"}  # fmt: skip
    arguments = {name: value for name, value in record["arguments"].items() if name not in free}
    data = {
        name: [file["sha256"], file.get("mask_sha256")] for name, file in record["data"].items()
    }
    precision = {"precision": record["settings"]["precision"], "base": record["base"]}
    return arguments | data | precision


if __name__ == "__main__":
    run(main)
