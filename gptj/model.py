"""The model of a run: where training starts from, and a GPT-J or GPT-NeoX with those weights."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from gptj import formats
from gptj.architectures import GPT_NEOX, architecture_of
from gptj.checkpoint import check_identity, newest_checkpoint
from gptj.input_data import InputData
from gptj.sections import Params
from gptj.weight_files import load_hf, load_mdl
from utils.cli import print_main
from utils.errors import UserError
from utils.io import read_json

# Keys whose values the weights were trained with, and that their shapes do not show.
DECIDING = ("num_heads", "rotary_dim", "nonlinearity", "layer_norm_epsilon", "num_hidden_layers")


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
    path, section = args.checkpoint_path, params.model.model_dump()
    if path is None and params.runconfig.autoload_last_checkpoint:
        path = newest_checkpoint(args.model_dir)
    if path is None:
        if args.is_pretrained_checkpoint:
            raise UserError("--is_pretrained_checkpoint: needs --checkpoint_path")
        if args.mode == "eval":
            raise UserError(f"--model_dir {args.model_dir}: holds no checkpoint; give --checkpoint_path")
        return Start()
    if path.is_dir():
        check_config(path / "config.json", section)
        return Start(weights=formats.drop_buffers(load_hf(path), section), path=path)
    checkpoint = load_mdl(path)
    weights = formats.to_hf(checkpoint["model"], section, str(path), not args.disable_strict_checkpoint_loading)
    if args.is_pretrained_checkpoint or "optimizer" not in checkpoint:
        return Start(weights=weights, path=path)
    step = checkpoint.get("global_step")
    if not isinstance(step, int):
        raise UserError(
            f"{path}: has an optimizer and no global_step; --is_pretrained_checkpoint takes its weights alone"
        )
    if training is None:
        return Start(step, weights, path=path)
    if "trainer" not in checkpoint:
        raise UserError(
            f"{path}: its optimizer state comes from another program; --is_pretrained_checkpoint starts from its weights"
        )
    check_identity(checkpoint, training.identity() | params.optimizer.identity(), path)
    return Start(step, weights, checkpoint, path)


def check_config(path: Path, section: dict) -> None:
    """Raise UserError where the configuration beside Hugging Face weights is of another model than the `model` section."""
    if not path.is_file():
        return
    config = read_json(path, "download it again")
    if not isinstance(config, dict):
        raise UserError(f"{path}: not a JSON object")
    converted = formats.config_to_cs(config, architecture_of(section), path)
    for key in DECIDING:
        if converted[key] != section[key]:
            raise UserError(f"model.{key}: {section[key]}, but {path} has {converted[key]}")


def build_model(params: Params, start: Start, strict: bool):
    """A GPT-J or GPT-NeoX with the weights of `start` in fp32. Without `strict`, weights missing there stay random."""
    section = params.model.model_dump()
    with torch.random.fork_rng():
        torch.manual_seed(params.runconfig.seed)
        model = make_model(section)
    if start.weights is None:
        return model
    try:
        names = load_weights(model, start.weights)
    except RuntimeError as error:
        message = " ".join(str(error).split())[:200]
        raise UserError(f"{start.path}: shapes differ from the `model` section ({message})") from error
    if names and strict:
        raise UserError(
            f"{start.path}: {len(names)} weights are missing or unknown, {names[0]} for example; "
            "--disable_strict_checkpoint_loading loads the others"
        )
    print_main(f"weights from {start.path}, step {start.step}")
    if names:
        print_main(f"{len(names)} weights are missing there and stay random, or are unknown: {', '.join(names[:10])}")
    return model


def make_model(section: dict):
    """The model of a `model` section in fp32, with random weights."""
    model_class = getattr(transformers, architecture_of(section).class_name)
    config = model_class.config_class(**formats.config_to_hf(section), use_cache=False)
    model = model_class(config).float()
    if architecture_of(section) is GPT_NEOX:  # has no key of its own in a Hugging Face configuration
        model.gpt_neox.emb_dropout.p = section["embedding_dropout_rate"]
    return model


def load_weights(model, weights: dict) -> list[str]:
    """Copy weights with the names of Hugging Face's files into a model; returns those missing or unknown. Raises
    RuntimeError for another shape."""
    own = model.state_dict().keys()
    weights = {name: tensor.float() for name, tensor in formats.with_one_head(weights, "the checkpoint").items()}
    if "embed_out.weight" in weights and "embed_out.weight" not in own:  # transformers 5 names it lm_head
        weights["lm_head.weight"] = weights.pop("embed_out.weight")
    differences = model.load_state_dict(weights, strict=False)
    return differences.missing_keys + differences.unexpected_keys


def describe(params: Params) -> str:
    """The architecture in one line."""
    model = params.model
    loss = f"batch_size, loss_weight {model.loss_weight:g}" if model.scales_loss_by_rows else model.loss_scaling
    return (
        f"{architecture_of(model.model_dump()).name}: {model.num_hidden_layers} layers, width {model.hidden_size}, "
        f"{model.num_heads} heads, {model.rotary_dim} rotary dimensions, {model.nonlinearity}; loss_scaling {loss}"
    )
