"""The model of a run: where training starts from, and a GPT-J with those weights."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GPTJConfig, GPTJForCausalLM

from gptj import formats
from gptj.checkpoint import check_identity, newest_checkpoint
from gptj.hdf5 import InputData
from gptj.params import Params
from utils.cli import print_main
from utils.errors import UserError


@dataclass(frozen=True)
class Start:
    """Step and weights that a run starts from."""

    step: int = 0
    weights: dict | None = None  # by Hugging Face names; None: random
    checkpoint: dict | None = None  # content of the .mdl file, where optimizer and schedule are resumed too
    path: Path | None = None


def find_start(args: argparse.Namespace, params: Params, training: InputData | None) -> Start:
    """--checkpoint_path, else the newest checkpoint in --model_dir, else random weights.

    Raises UserError for a missing, damaged or foreign checkpoint, and for one of a run with other data.
    """
    path = args.checkpoint_path
    if path is None and params.runconfig.autoload_last_checkpoint:
        path = newest_checkpoint(args.model_dir)
    if path is None:
        if args.is_pretrained_checkpoint:
            raise UserError("--is_pretrained_checkpoint: needs --checkpoint_path")
        if args.mode == "eval":
            raise UserError(f"--model_dir {args.model_dir}: holds no checkpoint; give --checkpoint_path")
        return Start()
    if path.is_dir():
        return Start(weights=formats.drop_buffers(formats.load_hf(path)), path=path)
    checkpoint = formats.load_mdl(path)
    weights = formats.to_hf(checkpoint["model"], str(path))
    if args.is_pretrained_checkpoint or "optimizer" not in checkpoint:
        return Start(weights=weights, path=path)
    step = int(checkpoint["global_step"])
    if training is None:
        return Start(step, weights, path=path)
    if "trainer" not in checkpoint:
        raise UserError(
            f"{path}: its optimizer state comes from another program; --is_pretrained_checkpoint starts from its weights"
        )
    check_identity(checkpoint, training.identity() | params.optimizer.identity(), path)
    return Start(step, weights, checkpoint, path)


def build_model(params: Params, start: Start, strict: bool) -> GPTJForCausalLM:
    """A GPT-J with the weights of `start` in fp32. Without `strict`, weights missing there stay random."""
    config = GPTJConfig(**formats.config_to_hf(params.model.model_dump()), use_cache=False)
    with torch.random.fork_rng():
        torch.manual_seed(params.runconfig.seed)
        model = GPTJForCausalLM(config).float()
    if start.weights is None:
        return model
    try:
        weights = {name: tensor.float() for name, tensor in start.weights.items()}
        differences = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        message = " ".join(str(error).split())[:200]
        raise UserError(f"{start.path}: shapes differ from the `model` section ({message})") from error
    names = differences.missing_keys + differences.unexpected_keys
    if names and strict:
        raise UserError(
            f"{start.path}: {len(names)} weights are missing or unknown, {names[0]} for example; "
            "--disable_strict_checkpoint_loading loads the others"
        )
    print_main(f"weights from {start.path}, step {start.step}")
    return model
