"""Train and evaluate a GPT-J by a configuration file, on a CPU or on GPUs.

    python gptj/run.py CPU --mode train --params gptj/configs/params_gptj_tiny.yaml --model_dir runs/tiny
    python gptj/run.py CPU --mode eval  --params gptj/configs/params_gptj_tiny.yaml --model_dir runs/tiny
    python gptj/run.py GPU --mode train --params gptj/configs/params_gptj_6B_TRC2.yaml --model_dir runs/trc2 \\
        --checkpoint_path converted/pytorch_model_to_cs-1.8.mdl --is_pretrained_checkpoint

Writes checkpoint_<step>.mdl (weights, optimizer, schedule, place in the data), params_<mode>.yaml,
metrics.jsonl and TensorBoard events into --model_dir, and goes on from the newest checkpoint there.
Kill it when you like: without --checkpoint_path and with
an absolute --max_steps the same command ends where it would have ended. Several GPUs: start it by
`python -m torch.distributed.run --nproc_per_node N`.
"""

import argparse
from pathlib import Path

from gptj.params import load
from utils.errors import UserError, run
from utils.io import atomic_write


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("device", choices=["CPU", "GPU"])
    add("-m", "--mode", required=True, choices=["train", "eval", "train_and_eval", "eval_all"])
    add("-p", "--params", type=Path, required=True, help="the YAML file")
    add("-o", "--model_dir", type=Path, default=Path("model_dir"), help="default %(default)s")
    add("--checkpoint_path", type=Path, help=".mdl file or Hugging Face folder (default: the newest in --model_dir)")
    add("--is_pretrained_checkpoint", action="store_true", help="take its weights alone, and begin at step 0")
    add("--disable_strict_checkpoint_loading", action="store_true", help="weights that it lacks stay random")
    add("--max_steps", type=int, help="train up to this step")
    add("--num_steps", type=int, help="train so many steps more")
    add("--num_epochs", type=int, help="train so many times over the data")
    add("--eval_steps", type=int, help="batches to evaluate (default: all)")
    add("--export_hf", type=Path, metavar="DIR", help="at the end write the weights as a Hugging Face folder")
    add("--tokenizer", help="saved into --export_hf (default: the data's)")
    args = parser.parse_args()
    for name in ("max_steps", "num_steps", "num_epochs", "eval_steps"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: must be above 0")
    return args


def main() -> None:
    args = parse_arguments()
    params, ignored = load(args.params)
    override(params["runconfig"], args)

    from gptj.eval_loop import evaluate, evaluate_all
    from gptj.hdf5 import open_data
    from gptj.model import build_model, export, find_start
    from gptj.train_loop import check_device, train
    from utils.cli import print_main, silence_transformers

    silence_transformers()
    check_device(args.device)
    if ignored:
        print_main(f"without effect here: {', '.join(ignored)}")
    trains, evaluates = args.mode in ("train", "train_and_eval"), args.mode != "train"
    training = open_data(params, "train_input") if trains else None
    validation = open_data(params, "eval_input") if evaluates else None
    save_params(args, params)
    if args.mode == "eval_all":
        model = evaluate_all(args, params, validation)
    else:
        start = find_start(args, params, training)
        model = build_model(params, start, not args.disable_strict_checkpoint_loading)
        if trains:
            train(args, params, model, start, training, validation)
        else:
            evaluate(params, model, validation, start.step, args.model_dir)
    if args.export_hf:
        export(model, args.export_hf, args.tokenizer, training or validation)


def override(runconfig: dict, args: argparse.Namespace) -> None:
    """What is typed wins; a length that is typed, over every length in the file."""
    lengths = {name: getattr(args, name) for name in ("max_steps", "num_steps", "num_epochs")}
    if any(lengths.values()):
        runconfig |= lengths
    if args.eval_steps:
        runconfig["eval_steps"] = args.eval_steps


def save_params(args: argparse.Namespace, params: dict) -> None:
    import os

    import yaml

    if os.environ.get("RANK", "0") == "0":
        with atomic_write(args.model_dir / f"params_{args.mode}.yaml") as file:
            file.write(yaml.safe_dump(params, sort_keys=False).encode())


if __name__ == "__main__":
    run(main)
