"""The model to chat with: a local checkpoint, or one of a server."""

import argparse

from chat.conversation import Engine
from chat.repl import print_notice
from utils import cli, paths
from utils.errors import UserError, name_damage
from utils.io import read_json


def make_engine(args: argparse.Namespace) -> Engine:
    """The model that the options name."""
    name = args.model or args.model_path
    if args.base_url:
        engine = open_engine(args, name, "--model")
        if not name:
            print_notice(f"using {engine.name}")
        return engine
    return open_engine(args, name or newest_instruct_checkpoint(), "--model_path")


def open_engine(args: argparse.Namespace, name: str | None, flag: str) -> Engine:
    """A model of the server, or a local checkpoint."""
    # Heavy imports, after parsing: openai or torch, not both.
    if args.base_url:
        from chat.api_engine import ApiEngine

        return ApiEngine(name, args.base_url, args.complete, flag)
    from chat.local_engine import LocalEngine, memory_notice

    cli.silence_transformers()
    if flag != "--model_path" and (notice := memory_notice(name)):
        print_notice(notice)
    return LocalEngine(name, args.complete, flag)


def newest_instruct_checkpoint() -> str:
    """The instruction-tuned checkpoint that finished last."""
    finished = {}
    for record in paths.ckpts_dir().glob("instruct-*/run.json"):
        with name_damage(record, "name a checkpoint with --model_path"):
            if read_json(record, "name a checkpoint with --model_path").get("finished"):
                finished[record.parent] = record.stat().st_mtime_ns
    if not finished:
        raise UserError(
            f"{paths.ckpts_dir()}/instruct-*: no finished checkpoint; make one with bash scripts/quickstart.sh --chat "
            "or ./scripts/train.sh --task_name instruct, or name another with --model_path"
        )
    newest = max(finished, key=finished.get)
    print_notice(f"using {newest}")
    return str(newest)
