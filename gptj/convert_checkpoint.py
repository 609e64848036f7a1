"""Convert checkpoints and configurations of GPT-J and GPT-NeoX between Hugging Face (hf) and the published release
(cs-1.8). Checkpoints of its later releases (cs-2.x) are read.

    python gptj/convert_checkpoint.py convert gpt-j/model.safetensors --model gptj \\
        --src-fmt hf --tgt-fmt cs-1.8 --config gpt-j/config.json --output-dir /tmp/converted
    python gptj/convert_checkpoint.py convert runs/tiny/checkpoint_200.mdl --model gpt-neox --src-fmt cs-1.8 \\
        --tgt-fmt hf --config runs/tiny/params_train.yaml --hf-folder runs/tiny/hf --tokenizer EleutherAI/gpt-neox-20b
    python gptj/convert_checkpoint.py convert-config gpt-j/config.json --model gptj --src-fmt hf --tgt-fmt cs-1.8
    python gptj/convert_checkpoint.py list

Writes <file>_to_<format>.mdl (or .bin) and <config>_to_<format>.yaml (or .json); with --hf-folder a folder that
evaluation.py and transformers load. Tensors are renamed, bit for bit unchanged; of GPT-NeoX's queries and keys the rows
are also reordered. An hf source is a .safetensors or .bin file, an index of shards, or a folder; a cs source is a .mdl
file, converted or from a training run.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import yaml

from utils.cli import HelpFormatter, make_parser, print_result
from utils.errors import UserError, name_disk_errors, run
from utils.io import atomic_write, read_json, write_json

SOURCES = {"hf": ("cs-1.8",), "cs-1.8": ("hf",), "cs-2.x": ("hf", "cs-1.8")}
MODELS = ("gptj", "gpt-neox")
LATER_KEYS = ("norm_type", "pos_scaling_factor")  # of releases 2.x


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="models and formats")
    listing.add_argument("--model", choices=MODELS, help="one of them alone")
    for name, help in (("convert", "a checkpoint with its configuration"), ("convert-config", "a configuration")):
        command = commands.add_parser(name, help=help, formatter_class=HelpFormatter)
        add = command.add_argument
        add("file", type=Path, help="source")
        add("--model", required=True, choices=MODELS, help="architecture")
        add("--src-fmt", required=True, choices=SOURCES, help="format of the source")
        add("--tgt-fmt", required=True, choices=["hf", "cs-1.8"], help="format to write")
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
        list_formats([args.model] if args.model else MODELS)
        return
    validate(args)
    folder = args.output_dir or args.file.parent
    if args.command == "convert-config":
        target = config_path(args.file, args.tgt_fmt, folder)
        write_config(target, read_config(args.file, args)[1])
        print_result({"output": str(target)}, str(target))
    else:
        convert(args, folder)


def list_formats(models: Sequence[str]) -> None:
    pairs = ", ".join(f"{source} to {target}" for source, targets in SOURCES.items() for target in targets)
    formats = {source: list(targets) for source, targets in SOURCES.items()}
    print_result(dict.fromkeys(models, formats), "\n".join(f"{model}: {pairs}" for model in models))


def validate(args: argparse.Namespace) -> None:
    if args.src_fmt == args.tgt_fmt:
        raise UserError(f"--src-fmt and --tgt-fmt are both {args.src_fmt}")
    if not args.file.exists():
        raise UserError(f"{args.file}: no such file")
    if args.command == "convert" and args.hf_folder and args.tgt_fmt != "hf":
        raise UserError("--hf-folder: needs --tgt-fmt hf")
    if args.command == "convert" and args.tokenizer and not args.hf_folder:
        raise UserError("--tokenizer: needs --hf-folder")


def config_path(source: Path, target_format: str, folder: Path) -> Path:
    return folder / f"{source.stem}_to_{'hf.json' if target_format == 'hf' else 'cs-1.8.yaml'}"


def read_config(path: Path, args: argparse.Namespace) -> tuple[dict, dict]:
    """The checked `model` section of the source's configuration, and the converted configuration."""
    from gptj import formats
    from gptj.architectures import ARCHITECTURES, architecture_of
    from gptj.params import check_model_section, load_model_section

    architecture = ARCHITECTURES[args.model]
    if args.src_fmt == "hf":
        config = read_json(path, "download it again")
        if not isinstance(config, dict):
            raise UserError(f"{path}: not a JSON object")
        section = formats.config_to_cs(config, architecture, path)
        return check_model_section(section, path), {"model": section}
    section = load_model_section(path)
    if architecture_of(section) is not architecture:
        untied = str(section["use_untied_layer_norm"]).lower()
        is_of = f"model.use_untied_layer_norm {untied} stands for {architecture_of(section).name}"
        raise UserError(f"{path}: {is_of}, --model {args.model} for {architecture.name}")
    if args.tgt_fmt == "hf":
        return section, formats.config_to_hf(section)
    return section, {"model": {key: value for key, value in section.items() if key not in LATER_KEYS}}


def write_config(target: Path, config: dict) -> None:
    if target.suffix == ".json":
        write_json(target, config)
        return
    with atomic_write(target) as file:
        file.write(yaml.safe_dump(config, indent=4).encode())


def convert(args: argparse.Namespace, folder: Path) -> None:
    # Heavy imports, after parsing.
    import torch

    section, converted = read_config(args.config, args)
    stem = args.file.name.removesuffix(".index.json").removesuffix(args.file.suffix)
    config_target = config_path(args.config, args.tgt_fmt, folder)
    state = read_state(args.file, args.src_fmt, section, args.tgt_fmt)
    output = folder / f"{stem}_to_{args.tgt_fmt}.{'bin' if args.tgt_fmt == 'hf' else 'mdl'}"
    content = state if args.tgt_fmt == "hf" else {"model": state}
    if args.hf_folder:
        output, config_target = args.hf_folder, args.hf_folder / "config.json"
        write_hf_folder(output, state, args.tokenizer)
    else:
        with atomic_write(output) as file:
            torch.save(content, file)
    write_config(config_target, converted)  # last: a folder without it is incomplete
    if args.check:
        check_logits(section, args, output)
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
    storages, owned = set(), {}
    for name, tensor in state.items():  # safetensors refuses tensors that share memory, such as a tied head
        tensor = tensor.contiguous()
        owned[name] = tensor.clone() if tensor.data_ptr() in storages else tensor
        storages.add(tensor.data_ptr())
    with name_disk_errors(folder):
        save_file(owned, folder / "model.safetensors", {"format": "pt"})


def read_state(path: Path, source_format: str, section: dict, target_format: str) -> dict:
    """The tensors of a checkpoint under the names of another format, complete."""
    from gptj import formats
    from gptj.weight_files import load_hf, load_mdl

    source = load_hf(path) if source_format == "hf" else load_mdl(path)["model"]
    if source_format == "hf":
        state = formats.to_cs(source, section, str(path))
        formats.check_complete(state, section, str(path))
        return state if target_format != "hf" else formats.to_hf(state, section)
    formats.check_complete(formats.without_twins(source, str(path)), section, str(path))
    state = formats.to_hf(source, section, str(path))
    return state if target_format == "hf" else formats.to_cs(state, section)


def check_logits(section: dict, args: argparse.Namespace, output: Path) -> None:
    """Read both files again and compare the logits of their models. Raises UserError unless they are equal."""
    import torch

    logits = [compute_logits(section, args.file, args.src_fmt), compute_logits(section, output, args.tgt_fmt)]
    if not torch.equal(*logits):
        difference = (logits[0] - logits[1]).abs().max().item()
        raise UserError(f"{output}: the logits of source and output differ by up to {difference}")
    print("checked: source and output give the same logits")


def compute_logits(section: dict, path: Path, file_format: str):
    import torch

    from gptj import formats
    from gptj.model import load_weights, make_model
    from gptj.weight_files import load_hf, load_mdl

    if file_format == "hf":
        state = formats.drop_buffers(load_hf(path), section)
    else:
        state = formats.to_hf(load_mdl(path)["model"], section, str(path))
    model = make_model(section).eval()
    if names := load_weights(model, state):
        raise UserError(f"{path}: {len(names)} weights are missing or unknown, {names[0]} for example")
    with torch.no_grad():
        return model(torch.arange(min(64, section["max_position_embeddings"], section["vocab_size"]))[None]).logits


if __name__ == "__main__":
    run(main)
