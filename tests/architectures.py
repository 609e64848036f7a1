"""Tiny models of many causal architectures, with random weights that are large enough for faults to show."""

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

VOCABULARY, WINDOW, CONTEXT = 96, 16, 256
# Sizes under the names that configurations give them; each model takes those that it knows.
SIZES = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "word_embed_proj_dim", "lru_width"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "n_inner", "ffn_hidden_size", "dff"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "decoder_layers", "num_layers"), 4),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads", "num_heads"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), CONTEXT),
    **dict.fromkeys(("sliding_window", "window_size", "attention_window_size", "attention_chunk_size"), WINDOW),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("head_dim", "rotary_dim", "linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("initializer_range", "init_std"), 0.2),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "mamba_dt_rank", "time_step_rank", "num_heads"), 4),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "chunk_size", "mamba_chunk_size"), 16),
    **dict.fromkeys(("n_groups", "mamba_n_groups", "n_group", "topk_group"), 1),
    **dict.fromkeys(("dropout", "attention_dropout", "activation_dropout", "hidden_dropout", "residual_dropout"), 0.0),
    **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop", "layerdrop", "decoder_layerdrop"), 0.0),
    **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0),
    "vocab_size": VOCABULARY,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "first_k_dense_replace": 1,
    "mamba_d_ssm": 64,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Models whose sizes need more than SIZES.
SPECIAL = {
    "falcon-alibi": ("falcon", {"alibi": True, "new_decoder_architecture": False}),
    "phi3-longrope": (
        "phi3",
        {
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0] * 4,
                "long_factor": [4.0] * 4,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention"] * 2}),
    "bamba": ("bamba", {"attn_layer_indices": [1, 3]}),
    "jamba": ("jamba", {"attn_layer_offset": 1, "attn_layer_period": 2, "expert_layer_period": 2}),
    "granitemoehybrid": ("granitemoehybrid", {"layer_types": ["mamba", "attention"] * 2}),
    "gpt_neo": ("gpt_neo", {"attention_types": [[["global", "local"], 2]]}),
    "mamba2": ("mamba2", {"expand": 2, "num_heads": 4, "head_dim": 16}),
    "deepseek_v3": ("deepseek_v3", {"num_key_value_heads": 4, "head_dim": 8}),
    "llama-dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
}
NAMES = [
    "llama",
    "qwen2",
    "qwen3",
    "gpt2",
    "gpt_neox",
    "gptj",
    "mistral",
    "ministral3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "cohere",
    "cohere2",
    "olmo",
    "olmo2",
    "olmo3",
    "starcoder2",
    "gpt_oss",
    "bloom",
    "mpt",
    "falcon",
    "falcon_h1",
    "opt",
    "phi",
    "phi3",
    "codegen",
    "gpt_bigcode",
    "stablelm",
    "granite",
    "mamba",
    "falcon_mamba",
    "qwen3_next",
    "qwen3_moe",
    "mixtral",
    "olmoe",
    "nemotron_h",
    "helium",
    "glm4",
    "smollm3",
    "exaone4",
    "bart",
    "bert",
    "recurrent_gemma",
    "persimmon",
    "xglm",
    "biogpt",
    "ctrl",
    "modernbert-decoder",
    "apertus",
    "arcee",
    "nanochat",
    "seed_oss",
]


def make_config(name: str):
    kind, extra = SPECIAL.get(name, (name, {}))
    cls = CONFIG_MAPPING[kind]
    default = cls()
    sizes = {name: size for name, size in SIZES.items() if has_size(default, name)}
    return cls(**sizes | extra)


def has_size(config, name: str) -> bool:
    """True if a configuration takes the size: it has a value, or is a window that is off by default."""
    if name == "head_dim" and config.model_type == "falcon":  # derived from the other sizes
        return False
    return getattr(config, name, None) is not None or (name == "sliding_window" and hasattr(config, name))


def make_model(name: str):
    """The same weights at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(make_config(name)).eval()
