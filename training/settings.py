"""How a training run fits the machine it is on: ranks, arithmetic, micro-batches, memory."""

import os
import shutil
import sysconfig
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from training.flops import GIB, Shape, in_words, memory_bytes, shape_of
from training.loss import PLAIN_HEADS, chunk_tokens
from training.optim import STATE_BYTES
from utils.io import UserError

# Of one forward pass: Llama 3 8B keeps 22 GiB of activations for them, by arithmetic.
MICRO_BATCH_TOKENS = 4096
# Below so many FLOPs of a run torch.compile is left alone: 15 minutes at the 230 GFLOP/s of two CPU
# cores, where it takes 10 to 40 s and saves a tenth to a fifth; 8 minutes at 400 TFLOP/s.
WORTH_COMPILING = {"cpu": 2e14, "cuda": 2e17}


@dataclass(frozen=True)
class Settings:
    """What decides the result of a run, besides data and model, and how it is run."""

    lr: float
    bs: int  # blocks per optimizer step, over all GPUs
    wd: float
    warmup: float  # share of the steps
    seed: int
    block_size: int
    save_steps: int
    keep_checkpoints: int
    precision: str  # bf16 or fp32
    optim_state_dtype: str = "fp32"  # a key of optim.STATE_BYTES
    micro_batch: int | None = None  # blocks per forward pass and GPU
    recomputed_layers: int = 0  # whose activations the backward pass computes again
    compiled: bool = False
    lora_rank: int = 0  # 0: all weights learn
    sharding: str = "none"  # none (DDP), full (FSDP2) or hybrid (FSDP2 in a node, DDP between them)
    run_eval: bool = False
    report_to: str = "none"
    max_grad_norm: float | None = 1.0
    num_workers: int = 0  # processes that read blocks ahead
    prefetch: int = 2  # batches a process reads ahead
    keep_workers: bool = True  # from one epoch to the next


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def device_type() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def choose_precision(asked: str) -> str:
    """bf16 autocast over fp32 weights where the chip multiplies bf16 fast, fp32 elsewhere.

    On a CPU without AMX bf16 is the slower one: 140 against 210 tokens/s (SmolLM2-135M, 2 x 256,
    Xeon with AVX512-BF16, two cores; LOG.md, 2026-11-22).
    """
    if asked != "auto":
        return asked
    fast = torch.cuda.is_available() or torch.cpu.get_capabilities().get("amx_bf16", False)
    return "bf16" if fast else "fp32"


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
        raise UserError(
            f"--sharding {asked}: accelerate shards on GPUs alone; give --sharding none"
        )
    return asked


def choose_compile(asked: str, flops: float) -> bool:
    """Whether to compile the layers, for a run of `flops` in all. It depends on nothing that changes
    between a run and its resumption."""
    if asked != "auto":
        return asked == "on"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"  # what torch builds includes it
    able = torch.cuda.is_available() or (shutil.which("g++") and header.is_file())
    return bool(able) and flops / world_size() >= WORTH_COMPILING[device_type()]


def choose_micro_batch(settings: Settings) -> int:
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
    return settings.micro_batch or max(
        n for n in range(1, share + 1) if share % n == 0 and n <= most
    )


def sharing_ranks(settings: Settings) -> int:
    """Over how many ranks one copy of the model is spread."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return {"none": 1, "hybrid": local, "full": world_size()}[settings.sharding]


def memory_parts(model, shape: Shape, settings: Settings) -> dict[str, float]:
    plain = model.config.model_type in PLAIN_HEADS
    return memory_bytes(
        shape,
        settings.block_size,
        choose_micro_batch(settings),
        sharing_ranks(settings),
        settings.recomputed_layers,
        settings.precision == "bf16",
        STATE_BYTES[settings.optim_state_dtype],
        chunk_tokens(shape.vocabulary, device_type()) if plain else None,
    )


def fit_memory(
    model, settings: Settings, recompute: str, flags: bool = True
) -> tuple[Settings, str]:
    """The settings with as many recomputed layers as `recompute` says (`all`, a number, or `auto`:
    on a GPU the fewest that fit, on a CPU none), and what the run needs, in words.

    Raises UserError where the GPU has less, naming (where the caller has them) the `flags` that
    would make it fit.
    """
    shape = shape_of(model)

    def total(changed: Settings) -> float:
        return sum(memory_parts(model, shape, changed).values())

    gpu = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
    # 6% for CUDA's context, the allocator's gaps and what the estimate leaves out.
    there = 0.94 * gpu if gpu else float("inf")
    layers = {"all": shape.layers, "auto": 0}.get(recompute)
    settings = replace(
        settings,
        recomputed_layers=min(shape.layers, int(recompute)) if layers is None else layers,
    )
    if recompute == "auto":
        choices = [replace(settings, recomputed_layers=n) for n in range(shape.layers + 1)]
        settings = next((choice for choice in choices if total(choice) <= there), settings)
    words = in_words(memory_parts(model, shape, settings))
    if total(settings) > there:
        advice = "take a larger one"
        if flags:
            advice = flags_that_fit(settings, shape, lambda changed: total(changed) <= there)
        raise UserError(f"training {words}; this GPU has {gpu / GIB:.0f}; {advice}")
    if settings.recomputed_layers:
        words += f" ({settings.recomputed_layers} of {shape.layers} layers computed twice)"
    return settings, words + (f"; this GPU has {gpu / GIB:.0f}" if gpu else "")


def flags_that_fit(settings: Settings, shape: Shape, fits) -> str:
    """The first that would do, of flags in the order of what they cost."""
    settings = replace(settings, recomputed_layers=shape.layers)
    micro, bf16, int8 = (
        ("--micro_batch 1", {"micro_batch": 1}),
        ("--optim_state_dtype bf16", {"optim_state_dtype": "bf16"}),
        ("--optim_state_dtype int8", {"optim_state_dtype": "int8"}),
    )
    for choice in ((), (micro,), (bf16,), (micro, bf16), (int8,), (micro, int8)):
        changed = settings
        for _, change in choice:
            changed = replace(changed, **change)
        if fits(changed):
            return "it fits with " + " ".join(["--gradient_checkpointing", *(f for f, _ in choice)])
    return "it fits with --lora_rank 16, or on more GPUs"
