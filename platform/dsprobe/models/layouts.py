"""From a published `config.json` to a native transformers configuration.

Dream is a Qwen2 and LLaDA a Llama with bidirectional attention, so neither needs the code that lies beside
its weights. Every flag that would make this untrue is refused by name.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Final, Literal, get_args

from huggingface_hub.errors import StrictDataclassError
from transformers import LlamaConfig, PreTrainedConfig, Qwen2Config
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from dsprobe.errors import CheckpointError

Family = Literal["dream", "llada", "causal", "toy-diffusion", "toy-autoregressive"]
FAMILIES: Final[tuple[Family, ...]] = get_args(Family)
DIFFUSION_FAMILIES: Final = frozenset({"dream", "llada", "toy-diffusion"})

MAX_LAYERS: Final = 10_000
MAX_SIZE: Final = 2**31 - 1
"""Largest number that `config.json` may hold, and of layers: ten times what any model has."""

FAMILY_KEY: Final = "dsprobe_family"
"""Key in `config.json` by which the embedded models name their family."""

LLADA_KEY_MAPPING: Final = {
    r"^model\.transformer\.wte\.": r"model.embed_tokens.",
    r"^model\.transformer\.ln_f\.": r"model.norm.",
    r"^model\.transformer\.ff_out\.": r"lm_head.",
    # One rule per module: transformers allows a single backreference in each.
    **{
        rf"^model\.transformer\.blocks\.(\d+)\.{published}\.": rf"model.layers.\1.{native}."
        for published, native in {
            "attn_norm": "input_layernorm",
            "ff_norm": "post_attention_layernorm",
            "q_proj": "self_attn.q_proj",
            "k_proj": "self_attn.k_proj",
            "v_proj": "self_attn.v_proj",
            "attn_out": "self_attn.o_proj",
            "ff_proj": "mlp.gate_proj",
            "up_proj": "mlp.up_proj",
            "ff_out": "mlp.down_proj",
        }.items()
    },
}
"""Published LLaDA weight names (regular expressions) → native Llama names."""

_LLADA_REQUIRED: Final[Mapping[str, tuple[Any, ...]]] = {
    "activation_type": ("silu",),
    "alibi": (False,),
    "attention_layer_norm": (False,),
    "bias_for_layer_norm": (False, None),
    "block_group_size": (1,),
    "block_type": ("llama",),
    "clip_qkv": (None,),
    "include_bias": (False,),
    "include_qkv_bias": (False, None),
    "input_emb_norm": (False,),
    "layer_norm_type": ("rms",),
    "layer_norm_with_affine": (True,),
    "multi_query_attention": (False, None),
    "rope": (True,),
    "scale_logits": (False,),
}
_DREAM_REQUIRED: Final[Mapping[str, tuple[Any, ...]]] = {
    "hidden_act": ("silu",),
    "rope_scaling": (None,),
    "use_mrope": (False,),
    "use_sliding_window": (False,),
}


def detect_family(raw: Mapping[str, Any], where: str) -> Family:
    """Read the family from a `config.json`.

    Args:
        raw: Contents of `config.json`.
        where: Folder or hub id, for the message.

    Raises:
        CheckpointError: `model_type` is missing or belongs to no known family; the nearest match is named.
    """
    if FAMILY_KEY in raw:
        named = raw[FAMILY_KEY]
        if named not in FAMILIES:
            raise CheckpointError(f"{where}: `{FAMILY_KEY}` is `{str(named)[:40]}`. Allowed: {', '.join(FAMILIES)}.")
        return FAMILIES[FAMILIES.index(named)]
    model_type = raw.get("model_type")
    if not isinstance(model_type, str):
        raise CheckpointError(f"{where}: config.json has no `model_type`; set `family` instead.")
    if model_type.lower() in ("dream", "llada"):
        return "dream" if model_type.lower() == "dream" else "llada"
    if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "causal"
    known = ["Dream", "llada", *MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
    close = difflib.get_close_matches(model_type, known, n=1, cutoff=0.5)
    hint = f" Did you mean `{close[0]}`?" if close else ""
    raise CheckpointError(
        f"{where}: unknown model_type `{model_type}`.{hint} Allowed: Dream, llada, and the "
        f"{len(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)} causal language models of transformers."
    )


def native_config(raw: Mapping[str, Any], family: Family, where: str) -> PreTrainedConfig:
    """Build the native configuration of a checkpoint.

    Args:
        raw: Contents of `config.json`, in the published layout or already in transformers' own.
        family: Adapter; diffusion families get bidirectional attention.
        where: Folder or hub id, for messages.

    Returns:
        A transformers configuration with `use_cache` off for diffusion families.

    Raises:
        CheckpointError: A needed key is missing, or a flag asks for something the native class does not do.
    """
    published = str(raw.get("model_type", "")).lower()
    _check_sizes(raw, where)
    try:
        if published == "dream":
            config = _dream_config(raw, where)
        elif published == "llada":
            config = _llada_config(raw, where)
        else:
            config = _transformers_config(raw, where)
    except CheckpointError:
        raise
    except KeyError as error:
        raise CheckpointError(f"{where}: config.json lacks `{error.args[0]}`.") from None
    # What the classes of transformers raise for values of wrong types.
    except (StrictDataclassError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        raise CheckpointError(f"{where}: config.json cannot be read: {str(error)[:300]}.") from None
    if family in DIFFUSION_FAMILIES:
        # The supported switch for bidirectional attention: it sets the mask builder and the kernel flag.
        config.is_causal = False
        config.use_cache = False
    return config


def _check_sizes(raw: Mapping[str, Any], where: str) -> None:
    """Refuse absurd numbers before a class of transformers makes a list of so many layers."""
    for key, value in raw.items():
        limit = MAX_LAYERS if "layer" in key else MAX_SIZE
        if isinstance(value, int | float) and abs(value) > limit:
            raise CheckpointError(f"{where}: `{key[:40]}` in config.json is {str(value)[:40]}. Allowed: up to {limit}.")


def key_mapping(raw: Mapping[str, Any]) -> dict[str, str] | None:
    """Renaming rules for `from_pretrained`, or `None` where the names are native already."""
    return LLADA_KEY_MAPPING if str(raw.get("model_type", "")).lower() == "llada" else None


def _require(raw: Mapping[str, Any], required: Mapping[str, tuple[Any, ...]], where: str) -> None:
    for key, allowed in required.items():
        if key in raw and raw[key] not in allowed:
            values = " or ".join(repr(value) for value in allowed)
            raise CheckpointError(f"{where}: `{key}` is {raw[key]!r}; the native model class only covers {values}.")


def _dream_config(raw: Mapping[str, Any], where: str) -> PreTrainedConfig:
    _require(raw, _DREAM_REQUIRED, where)
    return Qwen2Config(
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        intermediate_size=raw["intermediate_size"],
        num_hidden_layers=raw["num_hidden_layers"],
        num_attention_heads=raw["num_attention_heads"],
        num_key_value_heads=raw["num_key_value_heads"],
        max_position_embeddings=raw["max_position_embeddings"],
        rms_norm_eps=raw["rms_norm_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": float(raw["rope_theta"])},
        tie_word_embeddings=raw.get("tie_word_embeddings", False),
        use_sliding_window=False,
    )


def _llada_config(raw: Mapping[str, Any], where: str) -> PreTrainedConfig:
    _require(raw, _LLADA_REQUIRED, where)
    config = LlamaConfig(
        vocab_size=raw.get("embedding_size") or raw["vocab_size"],
        hidden_size=raw["d_model"],
        intermediate_size=raw.get("mlp_hidden_size") or raw["mlp_ratio"] * raw["d_model"],
        num_hidden_layers=raw["n_layers"],
        num_attention_heads=raw["n_heads"],
        num_key_value_heads=raw.get("n_kv_heads") or raw["n_heads"],
        max_position_embeddings=raw["max_sequence_length"],
        rms_norm_eps=raw["rms_norm_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": float(raw["rope_theta"])},
        tie_word_embeddings=raw.get("weight_tying", False),
        attention_bias=False,
        mlp_bias=False,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    # Not a Llama setting: read by the adapter.
    config.rope_full_precision = bool(raw.get("rope_full_precision", False))
    return config


def _transformers_config(raw: Mapping[str, Any], where: str) -> PreTrainedConfig:
    model_type = raw["model_type"]
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise CheckpointError(f"{where}: transformers has no configuration for `{model_type}`.")
    config_class: type[PreTrainedConfig] = CONFIG_MAPPING[model_type]
    # Without `auto_map` nothing can ask for the code in the folder.
    return config_class.from_dict({k: v for k, v in raw.items() if k != "auto_map"})
