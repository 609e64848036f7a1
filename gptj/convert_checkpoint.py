"""Convert GPT-J checkpoints and configurations between Hugging Face (hf) and the published release (cs-1.8).

    python gptj/convert_checkpoint.py convert gpt-j/model.safetensors --model gptj \\
        --src-fmt hf --tgt-fmt cs-1.8 --config gpt-j/config.json --output-dir /tmp/converted
    python gptj/convert_checkpoint.py convert runs/tiny/checkpoint_200.mdl --model gptj --src-fmt cs-1.8 --tgt-fmt hf \\
        --config runs/tiny/params_train.yaml --hf-folder runs/tiny/hf --tokenizer ckpts/SmolLM2-135M-Instruct
    python gptj/convert_checkpoint.py convert-config gpt-j/config.json --model gptj --src-fmt hf --tgt-fmt cs-1.8
    python gptj/convert_checkpoint.py list

Writes <file>_to_<format>.mdl (or .bin) and <config>_to_<format>.yaml (or .json); with --hf-folder a folder that
evaluation.py and transformers load. Tensors are renamed, bit for bit unchanged. An hf source is a .safetensors or
.bin file, an index of shards, or a folder; a cs-1.8 source is a .mdl file, converted or from a training run.
"""

import argparse
from pathlib import Path

import yaml

from utils.cli import HelpFormatter, make_parser, print_result
from utils.errors import UserError, run
from utils.io import atomic_write, read_json, write_json

FORMATS = ("hf", "cs-1.8")


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="models and formats")
    for name, help in (("convert", "a checkpoint with its configuration"), ("convert-config", "a configuration")):
        command = commands.add_parser(name, help=help, formatter_class=HelpFormatter)
        add = command.add_argument
        add("file", type=Path, help="source")
        add("--model", required=True, choices=["gptj"])
        add("--src-fmt", required=True, choices=FORMATS)
        add("--tgt-fmt", required=True, choices=FORMATS)
        add("--output-dir", type=Path, help="default: beside the source")
        if name == "convert":
            add("--config", type=Path, required=True, help="config.json, or a YAML file with a `model` section")
            add("--hf-folder", type=Path, metavar="DIR", help="write a Hugging Face folder, in place of .bin and .json")
            add("--tokenizer", help="hub name or folder of a tokenizer to save into --hf-folder")
            add("--check", action="store_true", help="build both models and compare their logits")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.command == "list":
        print_result({"gptj": {"hf": ["cs-1.8"], "cs-1.8": ["hf"]}}, "gptj: hf to cs-1.8, cs-1.8 to hf")
        return
    validate(args)
    folder = args.output_dir or args.file.parent
    if args.command == "convert-config":
        target = config_path(args.file, args.src_fmt, folder)
        write_config(target, read_config(args.file, args.src_fmt)[1])
        print_result({"output": str(target)}, str(target))
    else:
        convert(args, folder)


def validate(args: argparse.Namespace) -> None:
    if args.src_fmt == args.tgt_fmt:
        raise UserError(f"--src-fmt and --tgt-fmt are both {args.src_fmt}")
    if not args.file.exists():
        raise UserError(f"{args.file}: no such file")
    if args.command == "convert" and args.hf_folder and args.tgt_fmt != "hf":
        raise UserError("--hf-folder: needs --tgt-fmt hf")
    if args.command == "convert" and args.tokenizer and not args.hf_folder:
        raise UserError("--tokenizer: needs --hf-folder")


def config_path(source: Path, source_format: str, folder: Path) -> Path:
    return folder / f"{source.stem}_to_{'cs-1.8.yaml' if source_format == 'hf' else 'hf.json'}"


def read_config(path: Path, source_format: str) -> tuple[dict, dict]:
    """The Hugging Face configuration, and the converted one."""
    from gptj import formats
    from gptj.params import load_model_section

    if source_format == "hf":
        config = read_json(path, "download it again")
        if not isinstance(config, dict):
            raise UserError(f"{path}: not a JSON object")
        return config, {"model": formats.config_to_cs(config)}
    config = formats.config_to_hf(load_model_section(path))
    return config, config


def write_config(target: Path, config: dict) -> None:
    if target.suffix == ".json":
        write_json(target, config)
        return
    with atomic_write(target) as file:
        file.write(yaml.safe_dump(config, indent=4).encode())


def convert(args: argparse.Namespace, folder: Path) -> None:
    # Heavy imports, after parsing.
    import torch

    from gptj import formats

    config, converted = read_config(args.config, args.src_fmt)
    stem = args.file.name.removesuffix(".index.json").removesuffix(args.file.suffix)
    config_target = config_path(args.config, args.src_fmt, folder)
    if args.src_fmt == "hf":
        state = formats.to_cs(formats.load_hf(args.file), str(args.file))
        output, content = folder / f"{stem}_to_cs-1.8.mdl", {"model": state}
    else:
        state = formats.to_hf(formats.load_mdl(args.file)["model"], str(args.file))
        output, content = folder / f"{stem}_to_hf.bin", state
    if args.hf_folder:
        output, config_target = args.hf_folder, args.hf_folder / "config.json"
        write_hf_folder(output, state, args.tokenizer)
    else:
        with atomic_write(output) as file:
            torch.save(content, file)
    write_config(config_target, converted)  # last: a folder without it is incomplete
    if args.check:
        check_logits(config, args, output)
    result = {"tensors": len(state), "output": str(output), "config": str(config_target)}
    print_result(result, f"{output}: {len(state)} tensors\n{config_target}")


def write_hf_folder(folder: Path, state: dict, tokenizer: str | None) -> None:
    """Write weights and tokenizer of a Hugging Face folder; config.json is still missing."""
    from safetensors.torch import save_file

    from utils.tokenizer import load_tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    if tokenizer:
        load_tokenizer(tokenizer).save_pretrained(folder)
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def check_logits(config: dict, args: argparse.Namespace, output: Path) -> None:
    """Read both files again and compare the logits of their models. Raises UserError unless they are equal."""
    import torch

    logits = [compute_logits(config, args.file, args.src_fmt), compute_logits(config, output, args.tgt_fmt)]
    if not torch.equal(*logits):
        difference = (logits[0] - logits[1]).abs().max().item()
        raise UserError(f"{output}: the logits of source and output differ by up to {difference}")
    print("checked: source and output give the same logits")


def compute_logits(config: dict, path: Path, file_format: str):
    import torch
    from transformers import GPTJConfig, GPTJForCausalLM

    from gptj import formats

    state = formats.load_hf(path) if file_format == "hf" else formats.to_hf(formats.load_mdl(path)["model"], str(path))
    model = GPTJForCausalLM(GPTJConfig(**config)).eval()
    weights = {name: tensor.float() for name, tensor in formats.drop_buffers(state).items()}
    differences = model.load_state_dict(weights, strict=False)
    if differences.missing_keys or differences.unexpected_keys:
        raise UserError(f"{path}: {differences}")
    with torch.no_grad():
        return model(torch.arange(min(64, config["n_positions"]))[None]).logits


if __name__ == "__main__":
    run(main)
