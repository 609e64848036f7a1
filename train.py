"""Step 4: continued pretraining, and instruction tuning.

    ./scripts/train.sh --lr 5e-06 --rr 0.1 --epochs 2 --bs 16 --wd 0.01 --warmup 0.05 --task_name quality
    ./scripts/train.sh --lr 5e-06 --rr 0.1 --epochs 2 --bs 128 --wd 0.01 --warmup 0.05 --task_name instruct \\
        --model_name ckpts/quality-lr5e-06-rr0.1-epochs2-bs16-wd0.01-warmup0.05-MetaLlama38B

Writes ckpts/<task>-lr…-rr…-epochs…-bs…-wd…-warmup…-<model>/: weights, tokenizer, run.json and metrics.jsonl, and
after instruction tuning the chat template. The same command resumes an interrupted run and leaves a finished one
alone. scripts/train.sh starts one process per GPU, or one on a machine without a GPU.
"""

import argparse
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

from data.mixture import INSTRUCT, MixtureSettings, add_data_arguments, make_datasets, open_files
from training.run_record import is_finished, make_record, write_record
from training.settings import add_machine_arguments, add_recipe_arguments
from utils import paths
from utils.cli import make_parser, print_main, print_result, refuse_without_effect, silence_transformers
from utils.device import is_main_process, leave_process_group
from utils.errors import name_disk_errors, run
from utils.io import lock_folder, read_json
from utils.progress import working


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    add_recipe_arguments(parser)
    add_data_arguments(parser)
    add_machine_arguments(parser)
    args = parser.parse_args()
    if args.task_name != INSTRUCT:
        refuse_without_effect(parser, args, "conversations", f"with --task_name {args.task_name}")
    if not float(args.rr):
        refuse_without_effect(parser, args, "replay", f"with --rr {args.rr}")
    return args


def main() -> None:
    args = parse_arguments()
    folder = paths.ckpts_dir() / paths.run_name(args)
    with name_disk_errors(folder), lock_folder(folder) if is_main_process() else nullcontext():
        train(args, folder)


def train(args: argparse.Namespace, folder: Path) -> None:
    """Train, or report a finished run."""
    mixture = MixtureSettings.from_args(args)
    files = open_files(mixture)

    with working("starting torch"):  # heavy imports, after parsing
        from training import hardware, memory, trainer
        from training.flops import flops_per_token, model_shape
        from training.model import check_block_size, check_saving
        from utils.checkpoint import say_what_is_kept, text_config
        from utils.tokenizer import load_tokenizer, vocabulary_sha256

    silence_transformers()
    tokenizer = load_tokenizer(args.model_name, "--model_name")
    settings = resolve_settings(args, folder)
    if template := files["train"].meta.get("template"):
        tokenizer.chat_template = template  # saved beside the weights
    blocks, held_out = make_datasets(files, mixture, args.eval_blocks)
    record = make_record(args, settings, files, len(blocks))
    if is_finished(folder, record):
        report(folder, read_json(folder / "run.json", "delete the folder"), finished_before=True)
        return
    model = load_model(args, tokenizer, settings)
    settings, memory_needed = memory.fit_memory(model, settings, args.gradient_checkpointing)
    flops = len(blocks) * args.block_size * flops_per_token(model_shape(model), args.block_size)
    settings = replace(settings, compiled=hardware.choose_compile(args.compile, flops))
    for file in files.values():
        file.check_vocabulary(vocabulary_sha256(tokenizer), text_config(model).vocab_size, args.model_name)
    check_block_size(model, args.block_size, args.model_name)
    check_saving(model, tokenizer, folder)
    replay = f"{blocks.plan.replay_share():.1%} replay"
    print_main(f"{len(blocks):,} blocks of {args.block_size}, {replay}, {settings.precision} -> {folder}")
    print_main(memory_needed)
    record["settings"] = asdict(settings)
    write_record(folder, record)
    with say_what_is_kept(folder, args.save_steps):
        record |= {"finished": True} | trainer.train(model, tokenizer, (blocks, held_out), settings, folder)
    write_record(folder, record)
    report(folder, record)
    leave_process_group()


def resolve_settings(args: argparse.Namespace, folder):
    """The settings of the run on this machine; a run that was begun in `folder` keeps its precision."""
    from training.hardware import resolve_settings
    from training.precision import choose_precision
    from utils.checkpoint import load_config

    settings = resolve_settings(args)
    config = load_config(args.model_name, "--model_name")
    return replace(settings, precision=choose_precision(args.precision, config, folder))


def load_model(args: argparse.Namespace, tokenizer, settings):
    """The model to train, with document attention, LoRA adapters and end-of-turn tokens as the options ask."""
    from training import model as models
    from utils.chat_template import stop_token_ids

    model = models.load_model(args.model_name)
    if tokenizer.chat_template and args.task_name == "instruct":
        model.generation_config.eos_token_id = stop_token_ids(tokenizer)
    if args.mask_documents:
        models.use_document_attention(model, args.model_name)
    if args.lora_rank:
        model = models.add_lora(model, args.lora_rank, args.seed, settings.precision == "bf16")
    return model


def report(folder, record: dict, finished_before: bool = False) -> None:
    """Remove the checkpoints of a finished run, and print its result."""
    from utils.checkpoint import remove_checkpoints

    if is_main_process():
        remove_checkpoints(folder)
    keys = ("steps", "tokens", "tokens_per_s", "last_losses", "held_out_loss_before", "held_out_loss_after")
    result = {"checkpoint": str(folder), "finished_before": finished_before} | {key: record.get(key) for key in keys}
    if finished_before:
        print_result(result, f"{folder}: finished already; delete the folder to train it again")
        return
    speed = f"{result['tokens']:,} tokens at {result['tokens_per_s']:,} tokens/s"
    sentence = f"{speed}, last loss {result['last_losses'][-1]:.3f}"
    if result["held_out_loss_before"] is not None:
        kind = "conversations" if record["arguments"]["task_name"] == "instruct" else "replay"
        before, after = result["held_out_loss_before"], result["held_out_loss_after"]
        sentence += f"; held-out {kind}: loss {before:.3f} before, {after:.3f} after"
    print_result(result, f"{sentence} -> {folder}")


if __name__ == "__main__":
    run(main)
