"""Step 4: continued pretraining, and instruction tuning.

    ./scripts/train.sh --lr 5e-06 --rr 0.1 --epochs 2 --bs 16 --wd 0.01 --warmup 0.05 --task_name quality
    ./scripts/train.sh --lr 5e-06 --rr 0.1 --epochs 2 --bs 128 --wd 0.01 --warmup 0.05 --task_name instruct \\
        --model_name ckpts/quality-lr5e-06-rr0.1-epochs2-bs16-wd0.01-warmup0.05-MetaLlama38B

Writes ckpts/<task>-lr…-rr…-epochs…-bs…-wd…-warmup…-<model>/: weights, tokenizer, run.json,
metrics.jsonl; of instruction tuning the chat template too. The same command goes on where a killed one stopped; a finished run is left alone.
scripts/train.sh starts one process per GPU, and one on a machine without.
"""

import argparse
from dataclasses import asdict, replace

from data.mixture import make_datasets, open_files
from training.hardware import choose_settings
from training.run_record import is_finished, make_record
from training.settings import check, machine_arguments, recipe_arguments
from utils import paths
from utils.errors import run
from utils.io import write_json
from utils.paths import run_name


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    recipe_arguments(parser.add_argument_group("the recipe"))
    machine_arguments(parser.add_argument_group("how it is run"))
    args = parser.parse_args()
    check(args)
    return args


def main() -> None:
    args = parse_arguments()
    folder = paths.ckpts_dir() / run_name(args)
    files = open_files(args)

    from transformers.utils import logging

    from training import trainer
    from training.flops import flops_per_token, model_shape
    from training.hardware import choose_compile, choose_micro_batch
    from training.memory import fit_memory
    from training.model import add_lora, load_model, use_document_attention
    from utils import chat_template
    from utils.checkpoint import remove_checkpoints
    from utils.device import is_main_process
    from utils.tokenizer import load_tokenizer, vocabulary_sha256

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    settings = choose_settings(args)
    choose_micro_batch(settings)  # what does not divide is said before a model is loaded
    tokenizer = load_tokenizer(args.model_name, "--model_name")
    if template := files["train"].meta.get("template"):
        tokenizer.chat_template = template  # saved beside the weights
    blocks, held_out = make_datasets(args, files)
    record = make_record(args, settings, files)
    if is_finished(folder, record):
        if is_main_process():
            remove_checkpoints(folder)
            print(f"{folder}: finished already; delete the folder to train it again")
        return
    model = load_model(args.model_name)
    if template:
        model.generation_config.eos_token_id = chat_template.stop_token_ids(tokenizer)
    if args.mask_documents:
        use_document_attention(model)
    if args.lora_rank:
        model = add_lora(model, args.lora_rank, args.seed, settings.precision == "bf16")
    settings, memory = fit_memory(model, settings, args.gradient_checkpointing)
    flops = len(blocks) * args.block_size * flops_per_token(model_shape(model), args.block_size)
    settings = replace(settings, compiled=choose_compile(args.compile, flops))
    vocabulary_sha256 = vocabulary_sha256(tokenizer)
    for file in files.values():
        file.check_vocabulary(vocabulary_sha256, model.config.vocab_size, args.model_name)
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
        remove_checkpoints(folder)
        print(
            f"{folder}: {result['tokens']:,} tokens at {result['tokens_per_s']:,} tokens/s, last loss {result['last_losses'][-1]:.3f}"
        )
        if held_out:
            print(
                f"held-out {'conversations' if template else 'replay'}: loss {result['held_out_loss_before']:.3f} before, {result['held_out_loss_after']:.3f} after"
            )


if __name__ == "__main__":
    run(main)
