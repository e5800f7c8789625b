"""Text models of transformers, two layers each."""

from __future__ import annotations

from typing import Any

from torch import nn

from fgcompile.zoo.registry import Entry, register

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": 128,
    "max_position_embeddings": 64,
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = {**SIZES, "num_attention_heads": 8, "num_key_value_heads": 4}
DISTIL = {
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 96,
    "vocab_size": 128,
    "max_position_embeddings": 64,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 128, "n_positions": 64}
ENCODER_DECODER = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "vocab_size": 128,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
T5 = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 96,
    "num_layers": 2,
    "num_heads": 4,
    "vocab_size": 128,
    "decoder_start_token_id": 0,
}
OPT = {**SIZES, "ffn_dim": 96, "word_embed_proj_dim": 32}
DEBERTA = {
    **SIZES,
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "type_vocab_size": 0,
}
EXPERTS = {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}
WINDOWS: dict[str, Any] = {
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention"],
}


def transformers_model(class_name: str, facts: dict[str, Any]) -> nn.Module:
    """A model of that class, from a configuration with these facts."""
    import transformers

    model_class: Any = getattr(transformers, class_name)
    config = model_class.config_class(**{**SPECIAL, **facts})
    return model_class(config)


def add(
    name: str, class_name: str, facts: dict[str, Any], unseen: bool = False, **more: Any
) -> None:
    """Register a transformers model; it needs no example inputs."""
    merged = {**facts, **more}
    register(Entry(name, lambda: transformers_model(class_name, merged), unseen=unseen))


EAGER: dict[str, Any] = {"attn_implementation": "eager"}

add("bert", "BertModel", SIZES)
add("bert:eager", "BertModel", SIZES, **EAGER)
add("bert:classifier", "BertForSequenceClassification", SIZES, num_labels=3)
add("bert:masked-lm", "BertForMaskedLM", SIZES)
add("bert:tokens", "BertForTokenClassification", SIZES, num_labels=3)
add("bert:question", "BertForQuestionAnswering", SIZES)
add("roberta", "RobertaModel", SIZES)
add("roberta:classifier", "RobertaForSequenceClassification", SIZES, num_labels=3)
add("distilbert", "DistilBertModel", DISTIL)
add("distilbert:classifier", "DistilBertForSequenceClassification", DISTIL)
add("albert", "AlbertModel", SIZES, embedding_size=16)
add("electra", "ElectraForTokenClassification", SIZES, embedding_size=16)
add("deberta-v2", "DebertaV2Model", DEBERTA)
add("deberta-v2:classifier", "DebertaV2ForSequenceClassification", DEBERTA)
add("gpt2", "GPT2LMHeadModel", GPT2)
add("gpt2:eager", "GPT2LMHeadModel", GPT2, **EAGER)
add("gpt_neox", "GPTNeoXForCausalLM", SIZES, rotary_pct=0.5)
add("opt", "OPTForCausalLM", OPT)
add(
    "bloom",
    "BloomForCausalLM",
    {"hidden_size": 32, "n_layer": 2},
    n_head=4,
    vocab_size=128,
)
add("falcon:multi-query", "FalconForCausalLM", SIZES, multi_query=True)
add(
    "falcon:new-decoder",
    "FalconForCausalLM",
    GROUPED,
    new_decoder_architecture=True,
    num_kv_heads=2,
)
add("llama", "LlamaForCausalLM", GROUPED)
add("llama:eager", "LlamaForCausalLM", GROUPED, **EAGER)
add("llama:tied", "LlamaForCausalLM", GROUPED, tie_word_embeddings=True)
add("llama:classifier", "LlamaForSequenceClassification", GROUPED, num_labels=3)
add("llama:multi-query", "LlamaForCausalLM", SIZES, num_key_value_heads=1)
add("gpt_bigcode", "GPTBigCodeForCausalLM", GPT2)
add("mistral", "MistralForCausalLM", GROUPED, sliding_window=4)
add("qwen2", "Qwen2ForCausalLM", GROUPED)
add("qwen3", "Qwen3ForCausalLM", GROUPED, head_dim=8)
add("gemma2", "Gemma2ForCausalLM", GROUPED, head_dim=8, sliding_window=4)
add("phi3", "Phi3ForCausalLM", GROUPED)
add("mixtral", "MixtralForCausalLM", EXPERTS)
add("t5", "T5ForConditionalGeneration", T5)
add("t5:gated", "T5ForConditionalGeneration", T5, feed_forward_proj="gated-gelu")
add("bart", "BartForConditionalGeneration", ENCODER_DECODER)
add("bart:eager", "BartModel", ENCODER_DECODER, **EAGER)
MODERN = {**SIZES, "local_attention": 4, "cls_token_id": 1, "sep_token_id": 2}
add("modernbert", "ModernBertModel", MODERN)
add("modernbert:eager", "ModernBertForMaskedLM", MODERN, **EAGER)

add("xlm", "XLMModel", {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "n_words": 128})
LATENT = {
    **{**EXPERTS, "num_attention_heads": 4, "moe_intermediate_size": 16},
    **{"q_lora_rank": 16, "kv_lora_rank": 16, "head_dim": 4},
    **{"qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8},
    **{"n_routed_experts": 4, "n_group": 2, "topk_group": 1},
}
add("deepseek_v3", "DeepseekV3ForCausalLM", LATENT, first_k_dense_replace=1)
add("gpt_oss", "GptOssForCausalLM", EXPERTS, head_dim=8, **WINDOWS)

add("mpnet", "MPNetModel", SIZES, unseen=True)
add("xlm-roberta", "XLMRobertaModel", SIZES, unseen=True)
add("gemma", "GemmaForCausalLM", GROUPED, unseen=True, head_dim=8)
add("gemma3", "Gemma3ForCausalLM", GROUPED, unseen=True, head_dim=8, **WINDOWS)
add("cohere", "CohereForCausalLM", GROUPED, unseen=True, use_qk_norm=True)
add("olmo2", "Olmo2ForCausalLM", GROUPED, unseen=True)
add("stablelm", "StableLmForCausalLM", GROUPED, unseen=True, partial_rotary_factor=0.5)
add("starcoder2", "Starcoder2ForCausalLM", GROUPED, unseen=True)
add("granite", "GraniteForCausalLM", GROUPED, unseen=True)
add("nemotron", "NemotronForCausalLM", GROUPED, unseen=True)
add("phi", "PhiForCausalLM", SIZES, unseen=True)
add("gptj", "GPTJForCausalLM", GPT2, unseen=True, rotary_dim=4)
add("pegasus", "PegasusForConditionalGeneration", ENCODER_DECODER, unseen=True)
add("marian", "MarianMTModel", ENCODER_DECODER, unseen=True)
add(
    "xlnet",
    "XLNetModel",
    {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 96, "vocab_size": 128},
    unseen=True,
)
