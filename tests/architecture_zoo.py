"""Tiny random models of many architectures over the byte vocabulary of conftest: what lawf serves, and what it must refuse.

Each builder is seeded, so that a model is always the same; width 32, four layers, both kinds of layer in the upper half of
every mixed model, float32, eval mode. Greedy texts of the served ones are varied and never end early. Names are model types.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import (
    BambaForCausalLM,
    BertLMHeadModel,
    Cohere2ForCausalLM,
    DeepseekV3ForCausalLM,
    FalconH1ForCausalLM,
    FalconMambaForCausalLM,
    Gemma2ForCausalLM,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    Glm4ForCausalLM,
    GPT2LMHeadModel,
    GptOssForCausalLM,
    GraniteForCausalLM,
    GraniteMoeHybridForCausalLM,
    JambaForCausalLM,
    Lfm2ForCausalLM,
    LlamaForCausalLM,
    Mamba2ForCausalLM,
    MambaForCausalLM,
    MistralForCausalLM,
    Olmo2ForCausalLM,
    OpenAIGPTLMHeadModel,
    Phi3ForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3_5ForCausalLM,
    Qwen3ForCausalLM,
    Qwen3MoeForCausalLM,
    Qwen3NextForCausalLM,
    RecurrentGemmaForCausalLM,
    ReformerModelWithLMHead,
    RwkvForCausalLM,
    SiglipVisionConfig,
    SmolLM3ForCausalLM,
    XLNetLMHeadModel,
    xLSTMForCausalLM,
)

WINDOW = 8  # of every sliding layer: far shorter than the texts, else the window would never act

Builder = Callable[[], PreTrainedModel]

# For models without attention: theirs have other names for heads and inner width.
BARE: dict[str, Any] = dict(vocab_size=259, hidden_size=32, num_hidden_layers=4, eos_token_id=2, pad_token_id=0, bos_token_id=None,
                            initializer_range=0.3, tie_word_embeddings=False)  # tied random embeddings answer each token with itself
COMMON: dict[str, Any] = BARE | dict(intermediate_size=64, num_attention_heads=2, num_key_value_heads=1, head_dim=16, max_position_embeddings=256)
EXPERTS: dict[str, Any] = COMMON | dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
DELTA_NET: dict[str, Any] = dict(linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=16, linear_value_head_dim=16)
MAMBA2: dict[str, Any] = dict(mamba_n_heads=4, mamba_d_state=16, mamba_chunk_size=16)  # chunks shorter than the texts
GEMMA: dict[str, Any] = COMMON | dict(query_pre_attn_scalar=16, sliding_window=WINDOW)
LATENT: dict[str, Any] = COMMON | dict(num_key_value_heads=2, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, head_dim=8,
                                       v_head_dim=16, first_k_dense_replace=3, moe_intermediate_size=32, n_routed_experts=4,
                                       num_experts_per_tok=2, n_group=2, topk_group=1)
SLIDING_AND_FULL = ["sliding_attention", "full_attention"] * 2


def build(model_class: Any, config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = model_class(config)
    with torch.no_grad():
        model.get_output_embeddings().weight[2] = 0.0  # a logit of 0 is never the highest: no greedy text ends before its limit
    model.eval()
    return model


def tiny(model_class: Any, **options: Any) -> PreTrainedModel:
    return build(model_class, model_class.config_class(**options))


def gemma3_multimodal() -> PreTrainedModel:
    """Loads through AutoModelForCausalLM; a vision tower with layers of its own comes before the decoder."""
    text = Gemma3TextConfig(**GEMMA, layer_types=SLIDING_AND_FULL)
    vision = SiglipVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=2, image_size=8, patch_size=4)
    marks: dict[str, Any] = dict(eos_token_id=2, pad_token_id=0, boi_token_index=256, eoi_token_index=257, image_token_index=258)
    config = Gemma3Config(text_config=text.to_dict(), vision_config=vision.to_dict(), mm_tokens_per_image=4, initializer_range=0.3,
                          tie_word_embeddings=False, **marks)
    return build(Gemma3ForConditionalGeneration, config)


ARCHITECTURES: dict[str, Builder] = {
    "llama": partial(tiny, LlamaForCausalLM, **COMMON),
    "qwen3": partial(tiny, Qwen3ForCausalLM, **COMMON),
    "qwen3_moe": partial(tiny, Qwen3MoeForCausalLM, **EXPERTS),
    "qwen3_5": partial(tiny, Qwen3_5ForCausalLM, **COMMON, **DELTA_NET),
    "qwen3_next": partial(tiny, Qwen3NextForCausalLM, **EXPERTS, **DELTA_NET, shared_expert_intermediate_size=32),
    "gemma3": partial(tiny, Gemma3ForCausalLM, **GEMMA, layer_types=SLIDING_AND_FULL),
    "mistral": partial(tiny, MistralForCausalLM, **COMMON, sliding_window=WINDOW),
    "phi3": partial(tiny, Phi3ForCausalLM, **COMMON, original_max_position_embeddings=256),
    "gpt2": partial(tiny, GPT2LMHeadModel, **BARE, num_attention_heads=2, max_position_embeddings=256),
    "gpt_oss": partial(tiny, GptOssForCausalLM, **COMMON, num_local_experts=4, num_experts_per_tok=2, sliding_window=WINDOW),
    "mamba2": partial(tiny, Mamba2ForCausalLM, **BARE, num_heads=4, head_dim=16, state_size=16, n_groups=1, chunk_size=16),
    "falcon_h1": partial(tiny, FalconH1ForCausalLM, **COMMON, **MAMBA2, mamba_d_ssm=64, lm_head_multiplier=0.5),
    "granite": partial(tiny, GraniteForCausalLM, **COMMON, logits_scaling=2.0, residual_multiplier=0.5),
    "olmo2": partial(tiny, Olmo2ForCausalLM, **COMMON),
    "smollm3": partial(tiny, SmolLM3ForCausalLM, **COMMON),
}

MORE: dict[str, Builder] = {
    "mamba": partial(tiny, MambaForCausalLM, **BARE),
    "falcon_mamba": partial(tiny, FalconMambaForCausalLM, **BARE),
    "jamba": partial(tiny, JambaForCausalLM, **COMMON, num_experts=4, attn_layer_period=2, attn_layer_offset=1, use_mamba_kernels=False),
    "bamba": partial(tiny, BambaForCausalLM, **COMMON, **MAMBA2, attn_layer_indices=[1, 3]),
    "granitemoehybrid": partial(tiny, GraniteMoeHybridForCausalLM, **COMMON, **MAMBA2, num_local_experts=4,
                                shared_intermediate_size=32, layer_types=["linear_attention", "full_attention"] * 2),
    "lfm2": partial(tiny, Lfm2ForCausalLM, **COMMON, block_auto_adjust_ff_dim=False, layer_types=["conv", "full_attention"] * 2),
    "recurrent_gemma": partial(tiny, RecurrentGemmaForCausalLM, **COMMON, attention_window_size=WINDOW,
                               block_types=["recurrent", "attention"], w_init_variance_scale=1.0),
    "deepseek_v3": partial(tiny, DeepseekV3ForCausalLM, **LATENT),
    "cohere2": partial(tiny, Cohere2ForCausalLM, **COMMON, sliding_window=WINDOW, layer_types=SLIDING_AND_FULL),
    "glm4": partial(tiny, Glm4ForCausalLM, **COMMON),
    "gemma2": partial(tiny, Gemma2ForCausalLM, **GEMMA),
    "gemma3_multimodal": gemma3_multimodal,
}

# All of these load through AutoModelForCausalLM.
REFUSED: dict[str, Builder] = {
    # Bidirectional unless is_decoder: later tokens change earlier logits. No cache comes back, yet one given is filled and used.
    "bert": partial(tiny, BertLMHeadModel, **COMMON, is_decoder=False),
    # Causal, but its forward has no cache: it swallows use_cache and past_key_values, and answers from the new tokens alone.
    "openai-gpt": partial(tiny, OpenAIGPTLMHeadModel, **BARE, num_attention_heads=2, max_position_embeddings=256),
    # Recurrent; the state is a list of tensors named `state`. past_key_values is swallowed.
    "rwkv": partial(tiny, RwkvForCausalLM, **BARE, context_length=256, attention_hidden_size=32, intermediate_size=64),
    # Recurrent; its `cache_params` are of a class of its own, and a DynamicCache fails. Its state has room for multiples of 64 only.
    "xlstm": partial(tiny, xLSTMForCausalLM, **BARE | dict(hidden_size=64), num_heads=2, chunk_size=16, qk_dim_factor=1.0),
    # Its attention hashes at random: the same text gives other logits each time. The cache is named `past_buckets_states`.
    "reformer": partial(tiny, ReformerModelWithLMHead, **BARE, num_attention_heads=2, attention_head_size=16, feed_forward_size=64,
                        is_decoder=True, attn_layers=["local", "lsh"] * 2, max_position_embeddings=256, axial_pos_shape=[16, 16],
                        axial_pos_embds_dim=[16, 16], local_attn_chunk_length=8, lsh_attn_chunk_length=8, num_buckets=4),
    # Bidirectional without a permutation mask; its memory is named `mems`.
    "xlnet": partial(tiny, XLNetLMHeadModel, **BARE, n_head=2, d_head=16, d_inner=64),
}
