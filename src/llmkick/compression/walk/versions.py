"""The version of the walk, a part of every run key: a new one where the same recipe gives other weights."""

WALK_VERSION = 5
ERROR_VERSION = 2  # of the output errors of layers, in the keys of kept reports alone
RECOVERY_VERSION = 3  # of recoveries, in the keys of recovered weights alone
# Families whose layers version 5 chose differently or calibrated on other inputs: routers that it compressed, experts
# that it left dense, blocks that are given more than hidden states, blocks that share weights.
_CHANGED = (
    *("Afmoe", "Aria", "Dbrx", "DeepseekV4", "Doge", "Gemma3n", "Gemma4", "GlmMoeDsa", "GptOss", "HYV4", "HunYuanMoE"),
    *("Inkling", "JetMoe", "Llama4", "LongcatFlash", "Phimoe", "Qwen2Moe", "Qwen3Next", "Qwen3_5Moe", "Qwen4Exp"),
    *("Rwkv", "XLNet", "Zamba", "Zaya"),
)


def walk_version(architecture: str) -> int:
    """The version for an architecture, by the name of its class in transformers."""
    return WALK_VERSION + 1 if architecture.startswith(_CHANGED) else WALK_VERSION
