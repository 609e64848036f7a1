"""Choices that depend on the machine: sharding, compilation, micro-batch size."""

import argparse
import os
import shutil
import sysconfig
from pathlib import Path

import torch

from training.settings import TrainingSettings
from utils.cli import settings_from_args
from utils.device import device_type, local_world_size, world_size
from utils.errors import UserError, first_line

MICRO_BATCH_TOKENS = 4096  # of one forward pass: about 22 GiB of activations for Llama 3 8B
# Runs of fewer FLOPs are not compiled: 15 minutes at the 230 GFLOP/s of two CPU cores, where compilation takes
# 10 to 40 s and saves 10 to 20%; 8 minutes at 400 TFLOP/s on a GPU.
MIN_FLOPS_TO_COMPILE = {"cpu": 2e14, "cuda": 2e17}


def resolve_settings(args: argparse.Namespace) -> TrainingSettings:
    """The settings of a run on this machine, except `precision`, which may still be auto. Raises UserError where the
    batch does not divide by the ranks."""
    recipe = {name: float(getattr(args, name)) for name in ("lr", "wd", "warmup")} | {"bs": int(args.bs)}
    sharding = choose_sharding(args.sharding, args.lora_rank)
    settings = settings_from_args(TrainingSettings, args, **recipe, sharding=sharding)
    choose_micro_batch(settings)
    if settings.report_to == "wandb" and os.environ.get("WANDB_MODE") not in ("offline", "disabled"):
        check_wandb_login()
    return settings


def check_wandb_login() -> None:
    """Raise UserError where wandb would refuse or ask for a login when training begins."""
    import wandb  # 1 s to import

    try:
        reason = "" if wandb.login(prompt=False) else "not logged in"
    except wandb.errors.Error as error:
        reason = first_line(error)
    if reason:
        raise UserError(f"--report_to wandb: {reason}; run wandb login, or set WANDB_MODE=offline")


def choose_sharding(sharding: str, lora_rank: int) -> str:
    """Resolve `auto`: FSDP2 over all GPUs; CPU ranks (of the tests) and LoRA runs, which need little memory,
    replicate the model. Raises UserError for combinations that are not supported."""
    if lora_rank and sharding in ("full", "hybrid"):
        raise UserError(f"--sharding {sharding}: not supported with --lora_rank; use --sharding none")
    if world_size() == 1 or lora_rank:
        return "none"
    if sharding == "hybrid" and world_size() % local_world_size():
        raise UserError("--sharding hybrid: every node must run as many processes as the first")
    if sharding == "auto":
        return "full" if torch.cuda.is_available() else "none"
    if sharding != "none" and not torch.cuda.is_available():
        raise UserError(f"--sharding {sharding}: accelerate shards only on GPUs; use --sharding none")
    return sharding


def choose_compile(compile: str, flops: float) -> bool:
    """Resolve `auto` for a run of `flops` in total. The choice is the same when the run is resumed."""
    if compile != "auto":
        return compile == "on"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"  # included by the code that torch generates
    can_compile = torch.cuda.is_available() or (shutil.which("g++") and header.is_file())
    return bool(can_compile) and flops / world_size() >= MIN_FLOPS_TO_COMPILE[device_type()]


def choose_micro_batch(settings: TrainingSettings) -> int:
    """Blocks per forward pass: --micro_batch, or a rank's largest divisor within MICRO_BATCH_TOKENS."""
    ranks = world_size()
    if ranks == 1 and torch.cuda.device_count() > 1:
        raise UserError("one process sees several GPUs; start scripts/train.sh, or set CUDA_VISIBLE_DEVICES to one")
    if settings.bs % ranks:
        raise UserError(
            f"--bs {settings.bs} does not divide by {ranks} processes (gptj/run.py: train_input.batch_size)"
        )
    blocks = settings.bs // ranks
    if settings.micro_batch and blocks % settings.micro_batch:
        raise UserError(f"--bs {settings.bs} does not divide by {ranks} × --micro_batch {settings.micro_batch}")
    limit = max(1, MICRO_BATCH_TOKENS // settings.block_size)
    return settings.micro_batch or max(n for n in range(1, blocks + 1) if blocks % n == 0 and n <= limit)


def shard_ranks(settings: TrainingSettings) -> int:
    """Number of ranks that share one copy of the model."""
    return {"none": 1, "hybrid": local_world_size(), "full": world_size()}[settings.sharding]
