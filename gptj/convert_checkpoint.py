"""Convert GPT-J checkpoints and configurations between Hugging Face (hf) and the published release (cs-1.8).

    python gptj/convert_checkpoint.py convert gpt-j/model.safetensors --model gptj \\
        --src-fmt hf --tgt-fmt cs-1.8 --config gpt-j/config.json --output-dir /tmp/converted
    python gptj/convert_checkpoint.py convert-config gpt-j/config.json --model gptj --src-fmt hf --tgt-fmt cs-1.8
    python gptj/convert_checkpoint.py list

Writes <file>_to_<format>.mdl (or .bin) and <config>_to_<format>.yaml (or .json). Bit for bit: tensors
are renamed, never changed. Of Hugging Face's side .safetensors, .bin, an index of shards, or a folder;
of the other's a .mdl, converted or from a training run. --check builds both models and compares logits.
"""

import argparse
import json
from pathlib import Path

from utils.errors import UserError, run
from utils.io import atomic_write, read_json, write_json

FORMATS = ("hf", "cs-1.8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="models and formats")
    for name, what in (("convert", "a checkpoint with its configuration"), ("convert-config", "a configuration")):
        command = commands.add_parser(name, help=what)
        command.add_argument("file", type=Path, help="to convert")
        command.add_argument("--model", required=True, choices=["gptj"])
        command.add_argument("--src-fmt", required=True, choices=FORMATS)
        command.add_argument("--tgt-fmt", required=True, choices=FORMATS)
        command.add_argument("--output-dir", type=Path, help="default: beside the file")
        if name == "convert":
            command.add_argument(
                "--config", type=Path, required=True, help="config.json, or a YAML file with a `model` section"
            )
            command.add_argument("--check", action="store_true", help="compare the logits of both")
    return parser.parse_args()


def convert_config(path: Path, source: str, folder: Path) -> tuple[Path, dict]:
    """Writes the other format's configuration; returns its path and the Hugging Face one as it was
    or became."""
    import yaml

    from gptj import formats
    from gptj.params import load_yaml

    if source == "hf":
        config = read_json(path, "download it again")
        if not isinstance(config, dict):
            raise UserError(f"{path}: no JSON object")
        target = folder / f"{path.stem}_to_cs-1.8.yaml"
        with atomic_write(target) as file:
            file.write(yaml.safe_dump({"model": formats.config_to_cs(config)}, indent=4).encode())
        return target, config
    params = load_yaml(path)
    if not isinstance(params.get("model"), dict):
        raise UserError(f"{path}: has no `model` section")
    config = formats.config_to_hf(params["model"])
    target = folder / f"{path.stem}_to_hf.json"
    write_json(target, config)
    return target, config


def convert(args: argparse.Namespace, folder: Path) -> None:
    import torch

    from gptj import formats

    target, config = convert_config(args.config, args.src_fmt, folder)
    stem = args.file.name.removesuffix(".index.json").removesuffix(args.file.suffix)
    if args.src_fmt == "hf":
        state = formats.load_hf(args.file)
        out, converted = folder / f"{stem}_to_cs-1.8.mdl", formats.to_cs(state, str(args.file))
        content = {"model": converted}
    else:
        state = formats.load_mdl(args.file)["model"]
        out, content = folder / f"{stem}_to_hf.bin", formats.to_hf(state, str(args.file))
        converted = content
    with atomic_write(out) as file:
        torch.save(content, file)
    print(f"{out}: {len(converted)} tensors from {len(state)}\n{target}")
    if args.check:
        check(config, args, out)


def check(config: dict, args: argparse.Namespace, out: Path) -> None:
    """Both files, read again, as models of transformers: the same logits, bit for bit."""
    import torch
    from transformers import GPTJConfig, GPTJForCausalLM

    from gptj import formats

    logits = []
    files = ((args.file, args.src_fmt), (out, args.tgt_fmt))
    for path, fmt in files:
        state = formats.load_hf(path) if fmt == "hf" else formats.to_hf(formats.load_mdl(path)["model"], str(path))
        state = {k: v for k, v in state.items() if not formats.MADE_BY_CODE.fullmatch(k)}
        model = GPTJForCausalLM(GPTJConfig(**config)).eval()
        lacking = model.load_state_dict({k: v.float() for k, v in state.items()}, strict=False)
        if lacking.missing_keys or lacking.unexpected_keys:
            raise UserError(f"{path}: {lacking}")
        with torch.no_grad():
            logits.append(model(torch.arange(min(64, config["n_positions"]))[None]).logits)
    worst = (logits[0] - logits[1]).abs().max().item()
    if worst:
        raise UserError(f"{out}: its logits differ by up to {worst}")
    print(f"checked: the same logits, largest difference {worst}")


def main() -> None:
    args = parse_arguments()
    if args.command == "list":
        print(json.dumps({"gptj": {"hf": ["cs-1.8"], "cs-1.8": ["hf"]}}, indent=2))
        return
    if len({args.src_fmt, args.tgt_fmt}) == 1:
        raise UserError(f"--src-fmt and --tgt-fmt are both {args.src_fmt}")
    if not args.file.exists():
        raise UserError(f"{args.file}: not there")
    folder = args.output_dir or args.file.parent
    if args.command == "convert-config":
        print(convert_config(args.file, args.src_fmt, folder)[0])
    else:
        convert(args, folder)


if __name__ == "__main__":
    run(main)
