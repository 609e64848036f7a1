"""TODO training.hardware."""

import argparse
import os
import shutil
import sysconfig
from pathlib import Path

import torch

from training.settings import TrainingSettings
from utils.device import device_type, world_size
from utils.errors import UserError


def choose_settings(args: argparse.Namespace):
    from training.settings import TrainingSettings
    from utils.device import choose_precision

    return TrainingSettings(
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


# Of one forward pass: Llama 3 8B keeps 22 GiB of activations for them, by arithmetic.
MICRO_BATCH_TOKENS = 4096
# Below so many FLOPs of a run torch.compile is left alone: 15 minutes at the 230 GFLOP/s of two CPU
# cores, where it takes 10 to 40 s and saves a tenth to a fifth; 8 minutes at 400 TFLOP/s.
WORTH_COMPILING = {"cpu": 2e14, "cuda": 2e17}


def choose_sharding(asked: str, lora_rank: int) -> str:
    """Several GPUs share the model, within a node and over nodes; CPU ranks (the tests') and those
    that train adapters, which need little, have a copy each. Raises UserError for what cannot be."""
    if lora_rank and asked in ("full", "hybrid"):
        raise UserError(f"--sharding {asked}: not with --lora_rank; give --sharding none")
    if world_size() == 1 or lora_rank:
        return "none"
    if asked == "hybrid" and world_size() % int(os.environ.get("LOCAL_WORLD_SIZE", "1")):
        raise UserError("--sharding hybrid: every node must have as many processes as the first")
    if asked == "auto":
        return "full" if torch.cuda.is_available() else "none"
    if asked != "none" and not torch.cuda.is_available():
        raise UserError(f"--sharding {asked}: accelerate shards on GPUs alone; give --sharding none")
    return asked


def choose_compile(asked: str, flops: float) -> bool:
    """Whether to compile the layers, for a run of `flops` in all. It depends on nothing that changes
    between a run and its resumption."""
    if asked != "auto":
        return asked == "on"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"  # what torch builds includes it
    able = torch.cuda.is_available() or (shutil.which("g++") and header.is_file())
    return bool(able) and flops / world_size() >= WORTH_COMPILING[device_type()]


def choose_micro_batch(settings: TrainingSettings) -> int:
    """Blocks per forward pass: the largest divisor of the rank's share that MICRO_BATCH_TOKENS allow."""
    if world_size() == 1 and torch.cuda.device_count() > 1:
        raise UserError(
            f"one process sees {torch.cuda.device_count()} GPUs; start it by scripts/train.sh, "
            "or set CUDA_VISIBLE_DEVICES to one of them"
        )
    if settings.bs % world_size():
        raise UserError(f"--bs {settings.bs} does not divide by {world_size()} processes")
    share = settings.bs // world_size()
    if settings.micro_batch and share % settings.micro_batch:
        raise UserError(
            f"--bs {settings.bs} does not divide by {world_size()} processes of --micro_batch {settings.micro_batch}"
        )
    most = max(1, MICRO_BATCH_TOKENS // settings.block_size)
    return settings.micro_batch or max(n for n in range(1, share + 1) if share % n == 0 and n <= most)


def shard_ranks(settings: TrainingSettings) -> int:
    """Over how many ranks one copy of the model is spread."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return {"none": 1, "hybrid": local, "full": world_size()}[settings.sharding]
