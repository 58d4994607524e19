"""What the rules of `tiny` cannot know of a family, by the model type of its configuration or of a part of it."""

from typing import Any

_MOE = {"n_routed_experts": 6, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 32}
_SAM = {"output_channels": 32, "downsample_channels": [32, 32], "mlp_dim": 96, "global_attn_indexes": [1]}
_DECODER = {"is_decoder": True}

# Families that are not tried, and why.
UNTRIED = {
    "gemma4_assistant": "drafts for another model, of which it reads the keys and values",
    "musicgen": "generates audio; its configuration is that of an encoder, a decoder and an audio codec",
    "musicgen_melody": "generates audio; its configuration is that of an encoder, a decoder and an audio codec",
    "shieldgemma2": "a classifier; transformers does not read the folder that it writes of it",
}

OVERRIDES: dict[str, dict[str, Any]] = {
    "blt": {"encoder_hash_byte_group_vocab": 64, "encoder_hash_byte_group_size": [3, 4]},
    "chameleon": {"vocabulary_map": {"<image>": 300, "IMGIMGA": 301}},
    "chameleon_vqgan": {
        "base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1, "num_embeddings": 32, "resolution": 32,
    },
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_parameters": {
            "=": True,
            "sliding_attention": {"rope_type": "default", "rope_theta": 50000.0, "mrope_section": [2, 3, 3]},
            "full_attention": {"rope_type": "default", "rope_theta": 50000.0, "mrope_section": [2, 3, 3]},
        },
    },
    "cosmos3_edge_text": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 2, 2]}},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0}, "ffn_config": {"moe_top_k": 2}},
    "deepseek_ocr2_sam_vision_model": _SAM,
    "deepseek_ocr2_text": {**_MOE, "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "deepseek_v4": {"hc_mult": 2, "moe_intermediate_size": 192, "o_groups": 2, "o_lora_rank": 32},
    "diffusion_gemma_text": {"num_experts": 6, "top_k_experts": 2, "moe_intermediate_size": 32},
    "dots1": _MOE,
    "dots3_note_audio_encoder": {"adapter_input_size": 64, "adapter_out_dim": 64, "downsample_hidden_size": 32},
    "dots3_note_text": {
        "num_key_value_heads": 4, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 32, "swa_kv_lora_rank": 32,
        "swa_head_dim": 32, "swa_qk_nope_head_dim": 16, "swa_v_head_dim": 16,
        "layer_types": ["indexed_attention", "sliding_attention"] * 2,
    },
    "dots3_note_vision_encoder": {"adapter_in_dim": 64, "adapter_out_dim": 64},
    "ernie4_5_vl_moe_text": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e5, "mrope_section": [3, 3, 2]},
    },
    "emu3": {"vocabulary_map": {"<image>": 300, "<|extra_200|>": 301}},
    "emu3_vqgan": {
        "base_channels": 32, "channel_multiplier": [1, 1], "latent_channels": 4, "codebook_size": 32,
        "num_res_blocks": 1,
    },
    "falcon_h1": {"mamba_d_ssm": 128},
    "florence_vision": {
        "depths": [1] * 4, "embed_dim": [32] * 4, "num_heads": [2] * 4, "num_groups": [2] * 4, "projection_dim": 64,
    },
    "gemma3n_text": {"intermediate_size": [96] * 4, "activation_sparsity_pattern": [0.0] * 4, "laurel_rank": 32},
    "glm5_next_text": {"index_topk": 16},
    "granite4_vision": {"deepstack_layer_map": [[-1, 0]], "downsample_rate": "1/2"},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16, "num_experts": 6, "moe_topk": 2},
    "hunyuan_vl_text": {"head_dim": 16},
    "inkling2_text": {"rel_extent": 16},
    "inkling_text": {"rel_extent": 16},
    "falcon_mamba": {"time_step_rank": 4},
    "mamba": {"time_step_rank": 4},
    "moshi": {"ffn_dim": 128},
    "recurrent_gemma": {"intermediate_size": 128},
    "longcat_flash": {"zero_expert_num": 2, "moe_topk": 4},
    "zaya": {"router_hidden_size": 16, "num_hidden_layers": 4},
    "janus_vqgan": {
        "base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1, "embed_dim": 8,
        "image_token_embed_dim": 64,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "llama4_vision_model": {"vision_output_dim": 64, "projector_input_dim": 64, "projector_output_dim": 64},
    "mamba2": {"head_dim": 32, "num_heads": 4},
    "ministral": {"head_dim": 16},
    "mistral4": {"head_dim": 32},
    "molmo2_adapter": {"vision_feature_layer": [2, 1]},
    "muse_spark_audio": {"hidden_sizes": [32] * 4, "depths": [1] * 4},
    "nemotron": {"head_dim": 16, "num_key_value_heads": 2},
    "nemotron_h_omni": {"vision_config": {"video_temporal_patch_size": 2}},
    "paddleocr_vl_text": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5, "mrope_section": [2, 3, 3]}},
    "qwen4_exp_text": {
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 16,
        "indexer_compress_ratio": 4, "ngram_vocab_size_base": 50, "ple_embed_dim": 64, "split_ngram_parts": 2,
        "make_ngram_vocab_size_divisible_by": 8, "heads_per_ngram": 2, "ple_layer_ids": [1], "eos_token_id": 1,
    },
    "reformer": {
        **_DECODER, "attn_layers": ["local", "lsh", "local", "lsh"], "axial_pos_embds_dim": [32, 32],
        "axial_pos_shape": [16, 16], "num_buckets": 4, "feed_forward_size": 96, "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8, "hash_seed": 0,
    },
    "step3p5": {"sliding_window": 12},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "attention_hidden_size": 128, "attention_head_dim": 32, "num_key_value_heads": 4, "n_mamba_heads": 2,
        "num_hidden_layers": 6, "layers_block_type": ["linear_attention", "linear_attention", "hybrid"] * 2,
    },
    "zamba2": {
        "attention_hidden_size": 128, "attention_head_dim": 32, "num_key_value_heads": 4, "n_mamba_heads": 4,
        "mamba_headdim": 32, "num_hidden_layers": 6, "hybrid_layer_ids": [2, 5],
        "layers_block_type": ["mamba", "mamba", "hybrid"] * 2,
    },
}  # fmt: skip
