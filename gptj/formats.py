"""Names of GPT-J's weights and configuration keys in Hugging Face (hf) and in the published release (cs-1.8), and
readers of both kinds of checkpoint. Conversion renames; no tensor is changed.
"""

import re
import zipfile
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from utils.errors import UserError, first_line
from utils.io import read_json

# Hugging Face name -> cs-1.8 name; N is the number of the layer.
RENAMES = [
    ("transformer.wte", "embedding_layer.word_embeddings"),
    ("transformer.h.N.ln_1", "transformer_decoder.layers.N.norm1"),
    ("transformer.h.N.attn.q_proj", "transformer_decoder.layers.N.self_attn.proj_q_dense_layer"),
    ("transformer.h.N.attn.k_proj", "transformer_decoder.layers.N.self_attn.proj_k_dense_layer"),
    ("transformer.h.N.attn.v_proj", "transformer_decoder.layers.N.self_attn.proj_v_dense_layer"),
    ("transformer.h.N.attn.out_proj", "transformer_decoder.layers.N.self_attn.proj_output_dense_layer"),
    ("transformer.h.N.mlp.fc_in", "transformer_decoder.layers.N.ffn.ffn.0.linear_layer"),
    ("transformer.h.N.mlp.fc_out", "transformer_decoder.layers.N.ffn.ffn.1.linear_layer"),
    ("transformer.ln_f", "ln_f"),
    ("lm_head", "lm_head"),
]
TWIN = ("ln_f.", "transformer_decoder.norm.")  # cs-1.8 stores the final layer norm under both names
BUFFERS = re.compile(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)")  # computed by the code; in old hf files
CONFIG_RENAMES = [
    ("vocab_size", "vocab_size"),
    ("n_positions", "max_position_embeddings"),
    ("n_embd", "hidden_size"),
    ("n_layer", "num_hidden_layers"),
    ("n_head", "num_heads"),
    ("rotary_dim", "rotary_dim"),
    ("n_inner", "filter_size"),
    ("activation_function", "nonlinearity"),
    ("resid_pdrop", "residual_dropout_rate"),
    ("embd_pdrop", "embedding_dropout_rate"),
    ("attn_pdrop", "attention_dropout_rate"),
    ("layer_norm_epsilon", "layer_norm_epsilon"),
    ("initializer_range", "initializer_range"),
    ("tie_word_embeddings", "share_embedding_weights"),
]
# Further keys of a converted configuration, the same for every GPT-J.
FIXED = {
    "position_embedding_type": "rotary",
    "use_projection_bias_in_attention": False,
    "use_ffn_bias_in_attention": False,
    "use_ffn_bias": True,
    "use_bias_in_output": True,
    "attention_type": "scaled_dot_product",
    "mixed_precision": True,
}
HF_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
HF_DEFAULTS = {
    "activation_function": "gelu_new",
    "rotary_dim": 64,
    "n_inner": None,
    "tie_word_embeddings": False,
    "attn_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "layer_norm_epsilon": 1e-5,
    "initializer_range": 0.02,
}


def to_cs(state: dict, source: str = "the checkpoint") -> dict:
    """Hugging Face names -> cs-1.8 names. `source` is named in errors."""
    renamed = _rename(drop_buffers(state), RENAMES, source)
    name, twin = TWIN
    for kind in ("weight", "bias"):
        if f"{name}{kind}" in renamed:
            renamed[f"{twin}{kind}"] = renamed[f"{name}{kind}"]
    return renamed


def to_hf(state: dict, source: str = "the checkpoint") -> dict:
    """cs-1.8 names, with or without the prefix `model.` of a training run, -> Hugging Face names."""
    state = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    for twin in [name for name in state if name.startswith(TWIN[1])]:
        name = twin.replace(TWIN[1], TWIN[0])
        tensor = state.pop(twin)
        if not torch.equal(state.setdefault(name, tensor), tensor):
            raise UserError(f"{source}: {twin} and {name} differ")
    return _rename(state, [(new, old) for old, new in RENAMES], source)


def drop_buffers(state: dict) -> dict:
    return {name: tensor for name, tensor in state.items() if not BUFFERS.fullmatch(name)}


def _rename(state: dict, pairs: list[tuple[str, str]], source: str) -> dict:
    """Every tensor under its other name. Raises UserError for unknown names."""
    patterns = [(re.compile(re.escape(old).replace("N", r"(\d+)", 1) + r"\.(weight|bias)"), new) for old, new in pairs]
    renamed, unknown = {}, []
    for name, tensor in state.items():
        for pattern, new in patterns:
            if match := pattern.fullmatch(name):
                *layer, kind = match.groups()
                renamed[f"{new.replace('N', *layer) if layer else new}.{kind}"] = tensor
                break
        else:
            unknown.append(name)
    if unknown:
        raise UserError(f"{source}: {len(unknown)} names are not GPT-J's, {unknown[0]} for example")
    return renamed


def config_to_cs(config: dict) -> dict:
    """Content of a Hugging Face config.json -> the `model` section of a YAML file."""
    if config.get("model_type", "gptj") != "gptj":
        raise UserError(f"model_type {config['model_type']}: only gptj is supported")
    config = HF_DEFAULTS | config
    missing = [old for old, _ in CONFIG_RENAMES if old not in config]
    if missing:
        raise UserError(f"the configuration has no {', '.join(missing)}")
    model = {new: config[old] for old, new in CONFIG_RENAMES}
    model["filter_size"] = model["filter_size"] or 4 * model["hidden_size"]
    return model | FIXED


def config_to_hf(model: dict) -> dict:
    """The `model` section of a YAML file -> content of a Hugging Face config.json."""
    for key in ("position_embedding_type", "use_projection_bias_in_attention", "use_ffn_bias"):
        if model.get(key, FIXED[key]) != FIXED[key]:
            raise UserError(f"model.{key}: {model[key]}; for GPT-J it is {FIXED[key]}")
    missing = [new for old, new in CONFIG_RENAMES if new not in model and old not in HF_DEFAULTS]
    if missing:
        raise UserError(f"model.{missing[0]}: missing")
    config = {old: model.get(new, HF_DEFAULTS.get(old)) for old, new in CONFIG_RENAMES}
    eos = 50256 if config["vocab_size"] > 50256 else None  # GPT-2's end-of-text token
    config |= {"bos_token_id": eos, "eos_token_id": eos, "dtype": "float32"}
    return config | {"model_type": "gptj", "architectures": ["GPTJForCausalLM"]}


def load_mdl(path: Path) -> dict:
    """Read a .mdl checkpoint: `model` and, from a training run, `optimizer`, `lr_scheduler`, `global_step`."""
    loaded = load_torch(path)
    if not isinstance(loaded.get("model"), dict):
        raise UserError(
            f"{path}: has no `model` entry; convert a Hugging Face file with: python gptj/convert_checkpoint.py convert"
        )
    return loaded


def load_hf(path: Path) -> dict:
    """Read tensors with Hugging Face names from a .safetensors or .bin file, an index of shards, or a folder."""
    if path.is_dir():
        weights = next((path / name for name in HF_FILES if (path / name).is_file()), None)
        if not weights:
            raise UserError(f"{path}: contains no weights (model.safetensors or pytorch_model.bin)")
        return load_hf(weights)
    if path.name.endswith(".index.json"):
        shards = sorted(set(read_json(path, "download it again").get("weight_map", {}).values()))
        if any(Path(shard).name != shard for shard in shards):
            raise UserError(f"{path}: lists files outside its folder")
        return {name: tensor for shard in shards for name, tensor in load_hf(path.parent / shard).items()}
    if path.suffix != ".safetensors":
        return load_torch(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: missing or damaged ({first_line(error)})") from error


def load_torch(path: Path) -> dict:
    """Read a file of torch.save as data. Raises UserError for a file that could run code."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except UnpicklingError as error:
        raise UserError(f"{path}: refused, since it holds more than tensors ({first_line(error)})") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        kind = "damaged, or an HDF5 checkpoint (release 2.0 and later; 1.8 is supported)"
        raise UserError(f"{path}: {kind} ({first_line(error)})") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: holds a {type(loaded).__name__}, not a checkpoint")
    return loaded
