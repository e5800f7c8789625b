"""Vision and audio models of transformers, two layers each."""

from __future__ import annotations

from fgcompile.zoo.language import EAGER, ENCODER_DECODER, SIZES, add

VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "image_size": 16,
    "patch_size": 4,
}
TEXT = {**SIZES, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TOWERS = {"text_config": TEXT, "vision_config": VISION, "projection_dim": 24}
WHISPER = {
    **ENCODER_DECODER,
    "num_mel_bins": 8,
    "max_source_positions": 16,
    "max_target_positions": 32,
    "begin_suppress_tokens": None,
}
WAVES = {
    **SIZES,
    "conv_dim": [16, 16],
    "conv_kernel": [10, 3],
    "conv_stride": [5, 2],
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
STAGES = {"num_stages": 2, "hidden_sizes": [16, 32], "depths": [1, 1]}
SWIN = {
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
}
SEGFORMER = {
    "num_encoder_blocks": 2,
    "depths": [1, 1],
    "sr_ratios": [2, 1],
    "hidden_sizes": [16, 32],
    "patch_sizes": [7, 3],
    "strides": [4, 2],
    "num_attention_heads": [2, 4],
    "mlp_ratios": [2, 2],
    "decoder_hidden_size": 16,
}

add("vit", "ViTModel", VISION)
add("vit:classifier", "ViTForImageClassification", VISION, num_labels=3, **EAGER)
add("dinov2", "Dinov2Model", VISION)
add("clip", "CLIPModel", TOWERS)
add("whisper", "WhisperForConditionalGeneration", WHISPER)

add("dinov3", "DINOv3ViTModel", VISION, num_register_tokens=2)
add("swinv2", "Swinv2Model", SWIN)

add("siglip", "SiglipModel", TOWERS, unseen=True)
add("deit", "DeiTModel", VISION, unseen=True)
CONVNEXT = {**STAGES, "image_size": 32, "num_labels": 3}
add("convnext", "ConvNextForImageClassification", CONVNEXT, unseen=True)
add("resnet", "ResNetForImageClassification", STAGES, unseen=True, embedding_size=16)
add("swin", "SwinModel", SWIN, unseen=True)
add("segformer", "SegformerForSemanticSegmentation", SEGFORMER, unseen=True)
add("wav2vec2", "Wav2Vec2Model", WAVES, unseen=True)
