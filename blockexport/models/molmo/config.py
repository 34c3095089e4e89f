"""What `config.json` of a Molmo checkpoint says: which text stack to build, and the vision geometry.

Two namings are published: Hugging Face's (`hidden_size`, `num_hidden_layers`) with the dense models, and the training
code's own (`d_model`, `n_layers`) with MolmoE. Either is read, whatever the stack.
"""

from typing import Any, ClassVar

from transformers import LlamaConfig, Olmo2Config, OlmoeConfig, PreTrainedConfig, Qwen2Config

from blockexport.errors import ModelSupportError
from blockexport.models.molmo.entries import Entries, check_fixed, first, number, size
from blockexport.models.molmo.geometry import VisionGeometry, read_geometry

MODEL_TYPE = "molmo"
_DEFAULT_EXTRA_TOKENS = 128

# (mixture of experts, normalises after a branch, normalises queries and keys, biases in queries, keys and values)
_STACKS: dict[tuple[bool, bool, bool, bool], type[PreTrainedConfig]] = {
    (False, False, False, True): Qwen2Config,
    (False, False, False, False): LlamaConfig,
    (False, True, True, False): Olmo2Config,
    (True, False, True, False): OlmoeConfig,
}

# Settings of the training code that no published checkpoint uses, with the values under which they change nothing.
_FIXED: dict[str, tuple[Any, ...]] = {
    "activation_type": ("swiglu",),
    "alibi": (False,),
    "attn_logit_softcapping": (0, None),
    "clip_qkv": (None,),
    "final_logit_softcapping": (0, None),
    "layer_norm_type": ("rms",),
    "normalize_input_embeds": (False,),
    "rope": (True,),
    "rope_impl": ("llama", "default"),
    "scale_logits": (False,),
    "use_position_ids": (True,),
    "weight_tying": (False,),
}
# What a file says of its own making does not change the model.
_VOLATILE = ("_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version")


class MolmoConfig(PreTrainedConfig):
    """Configuration of a Molmo model; everything in it follows from the published entries.

    Attributes:
        published: the entries of `config.json`.
        text_config: the configuration of the transformers text stack.
        use_cache: whether a forward keeps keys and values when the caller does not say.
    """

    model_type: ClassVar[str] = MODEL_TYPE
    sub_configs_defaults: ClassVar[dict[str, Any]] = {"text_config": PreTrainedConfig}

    published: dict[str, Any] | None = None
    text_config: Any = None
    use_cache: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        entries = self.published or {}
        self.published = {name: entries[name] for name in sorted(entries) if name not in _VOLATILE}
        self.text_config = _text_config(self.published)
        super().__post_init__(**kwargs)

    @property
    def vision(self) -> VisionGeometry | None:
        """The vision side; None for a checkpoint that reads text only."""
        entries: dict[str, Any] = self.published or {}
        return read_geometry(entries, projector_size=_feed_forward_size(entries))

    @property
    def num_extra_tokens(self) -> int:
        """Token ids from `text_config.vocab_size` on that can be read but not written."""
        entries = self.published or {}
        return (
            0
            if entries.get("additional_vocab_size") == 0
            else size(entries, "additional_vocab_size", default=_DEFAULT_EXTRA_TOKENS)
        )

    @property
    def num_experts(self) -> int | None:
        """Experts of each block; None for a dense stack."""
        return getattr(self.text_config, "num_experts", None)


def _text_config(entries: Entries) -> PreTrainedConfig:
    check_fixed(entries, _FIXED)
    is_mixture, norms_after = bool(entries.get("moe_num_experts")), bool(entries.get("norm_after"))
    # Files that leave it out belong to the stacks that cannot do without.
    norms_queries = bool(entries.get("attention_layer_norm", is_mixture or norms_after))
    has_bias = bool(entries.get("qkv_bias", False))
    stack = _STACKS.get((is_mixture, norms_after, norms_queries, has_bias))
    if stack is None:
        msg = (
            f"config.json describes a Molmo text stack that was never published (moe_num_experts "
            f"{entries.get('moe_num_experts')}, norm_after {norms_after}, attention_layer_norm {norms_queries}, "
            f"qkv_bias {has_bias}); supported are those of Molmo-7B-D, Molmo-7B-O, Molmo-72B and MolmoE-1B"
        )
        raise ModelSupportError(msg)
    experts: dict[str, Any] = {}
    if is_mixture:
        num_experts, num_active = size(entries, "moe_num_experts"), size(entries, "moe_top_k")
        if num_active > num_experts:
            msg = f"config.json has moe_top_k {num_active} of {num_experts} experts; a token cannot go through more"
            raise ModelSupportError(msg)
        experts = {"num_experts": num_experts, "num_experts_per_tok": num_active, "norm_topk_prob": False}
    return stack(**_sizes(entries), **experts)


def _sizes(entries: Entries) -> dict[str, Any]:
    hidden_size = size(entries, "hidden_size", "d_model")
    num_heads = size(entries, "num_attention_heads", "n_heads")
    num_kv_heads = size(entries, "num_key_value_heads", "n_kv_heads", default=num_heads)
    if hidden_size % (2 * num_heads) or num_heads % num_kv_heads:
        msg = (
            f"config.json has hidden size {hidden_size} for {num_heads} heads and {num_kv_heads} of keys and values; "
            "heads need an equal, even width, and keys an equal number of heads"
        )
        raise ModelSupportError(msg)
    return {
        "vocab_size": size(entries, "embedding_size", "vocab_size"),
        "hidden_size": hidden_size,
        "intermediate_size": _feed_forward_size(entries),
        "num_hidden_layers": size(entries, "num_hidden_layers", "n_layers"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "max_position_embeddings": size(entries, "max_position_embeddings", "max_sequence_length"),
        "rms_norm_eps": number(entries, "layer_norm_eps", 1e-5),
        "rope_theta": number(entries, "rope_theta", 10_000.0),
        "tie_word_embeddings": False,
        "eos_token_id": entries.get("eos_token_id"),
        "bos_token_id": None,
        # transformers would take the id for a row that must not be trained.
        "pad_token_id": None,
    }


def _feed_forward_size(entries: Entries) -> int:
    """Width of the feed-forward branch of a block, or of one expert: published configurations count gate and up."""
    if first(entries, "intermediate_size", "mlp_hidden_size") is not None:
        return size(entries, "intermediate_size", "mlp_hidden_size") // 2
    return size(entries, "mlp_ratio") * size(entries, "hidden_size", "d_model") // 2
