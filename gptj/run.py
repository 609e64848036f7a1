"""Train and evaluate a GPT-J or GPT-NeoX described by a YAML file, on a CPU or on GPUs.

    python gptj/run.py CPU --mode train --params gptj/configs/params_gptj_tiny.yaml --model_dir runs/tiny
    python gptj/run.py CPU --mode eval  --params gptj/configs/params_gptj_tiny.yaml --model_dir runs/tiny
    python gptj/run.py GPU --mode train --params gptj/configs/params_gptj_6B_TRC2.yaml --model_dir runs/trc2 \\
        --checkpoint_path converted/pytorch_model_to_cs-1.8.mdl --is_pretrained_checkpoint

Writes checkpoint_<step>.mdl (weights, optimizer, schedule, position in the data), params_<mode>.yaml, metrics.jsonl
and TensorBoard events into --model_dir, and resumes from the newest checkpoint there: without --checkpoint_path and
with an absolute --max_steps, the same command continues a killed run to the same result. On several GPUs start it
with `python -m torch.distributed.run --nproc_per_node N`.
"""

import argparse
from contextlib import nullcontext
from pathlib import Path

import yaml

from gptj.params import load
from gptj.sections import Params
from utils.cli import make_parser, positive_int, print_main, print_result, refuse_without_effect, silence_transformers
from utils.device import is_main_process, leave_process_group
from utils.errors import name_disk_errors, run
from utils.io import atomic_write, lock_folder


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("device", choices=["CPU", "GPU"], help="where to compute")
    modes = ["train", "eval", "train_and_eval", "eval_all"]
    add("-m", "--mode", required=True, choices=modes, help="eval_all: every checkpoint in --model_dir")
    add("-p", "--params", type=Path, required=True, help="the YAML file")
    add("-o", "--model_dir", type=Path, default=Path("model_dir"), help="folder of the run")
    add("--checkpoint_path", type=Path, help=".mdl file or Hugging Face folder (default: the newest in --model_dir)")
    add("--is_pretrained_checkpoint", action="store_true", help="load its weights only, and start at step 0")
    add("--disable_strict_checkpoint_loading", action="store_true", help="weights missing in it stay random")
    add("--max_steps", type=positive_int, help="train up to this step")
    add("--num_steps", type=positive_int, help="train this number of further steps")
    add("--num_epochs", type=positive_int, help="train this number of passes over the data")
    add("--eval_steps", type=positive_int, help="batches to evaluate (default: all)")
    args = parser.parse_args()
    if args.mode in ("eval", "eval_all"):
        refuse_without_effect(parser, args, "max_steps num_steps num_epochs", f"with --mode {args.mode}")
    if args.mode == "train":
        refuse_without_effect(parser, args, "eval_steps", "with --mode train")
    return args


def main() -> None:
    args = parse_arguments()
    params, notes = load(args.params)
    writes_checkpoints = args.mode in ("train", "train_and_eval")
    lock = lock_folder(args.model_dir) if is_main_process() and writes_checkpoints else nullcontext()
    with lock, name_disk_errors(args.model_dir):
        run_mode(args, override(params, args), notes)


def run_mode(args: argparse.Namespace, params: Params, notes: list[str]) -> None:
    """Train or evaluate, and print the result."""
    # Heavy imports, after parsing.
    from gptj.checkpoint import newest_checkpoint
    from gptj.eval_loop import evaluate, evaluate_all
    from gptj.input_data import open_data
    from gptj.model import build_model, describe, find_start
    from gptj.train_loop import check_device, train

    silence_transformers()
    check_device(args.device)
    print_main("\n".join([describe(params), *notes]))
    training = open_data(params, "train_input") if args.mode in ("train", "train_and_eval") else None
    validation = open_data(params, "eval_input") if args.mode != "train" else None
    save_params(params, args.model_dir / f"params_{args.mode}.yaml")
    if args.mode == "eval_all":
        result = evaluate_all(args, params, validation)
    else:
        start = find_start(args, params, training)
        model = build_model(params, start, not args.disable_strict_checkpoint_loading)
        if training:
            result = train(args, params, model, start, (training, validation))
        else:
            result = {"step": start.step} | evaluate(params, model, validation, start.step, args.model_dir)
    checkpoint = newest_checkpoint(args.model_dir)
    result = {"mode": args.mode, "checkpoint": checkpoint and str(checkpoint)} | result
    print_result(result, f"step {result['step']}; newest checkpoint: {checkpoint or 'none'}")
    leave_process_group()


def override(params: Params, args: argparse.Namespace) -> Params:
    """Options win over the file; an option for the length wins over all lengths in the file."""
    lengths = {name: getattr(args, name) for name in ("max_steps", "num_steps", "num_epochs")}
    changes = lengths if any(lengths.values()) else {}
    if args.eval_steps:
        changes = changes | {"eval_steps": args.eval_steps}
    return params.model_copy(update={"runconfig": params.runconfig.model_copy(update=changes)})


def save_params(params: Params, path: Path) -> None:
    """Save the sections of the file with all defaults, and with the options that override them."""
    sections = {name: section for name, section in params.model_dump().items() if section is not None}
    if is_main_process():
        with atomic_write(path) as file:
            file.write(yaml.safe_dump(sections, sort_keys=False).encode())


if __name__ == "__main__":
    run(main, "resumes from the newest checkpoint in --model_dir, without one at step 0")
