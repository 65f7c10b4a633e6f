"""The shapes of the models of the published code and of later families. Estimating their memory needs no network.

All other facts about a model are read from its repository. The learning rates are from openai/weak-to-strong
(train_simple.py), which finetunes all weights in batches of 32 rows. There are no published rates for later families.
"""

from dataclasses import dataclass, field

from transformers import CONFIG_MAPPING, PretrainedConfig

from ..modeling.original_qwen import qwen2_config

__all__ = ["SEED_MODELS", "SeedModel"]


@dataclass(frozen=True)
class SeedModel:
    """
    The shapes of a model on the Hub.

    Args:
        model_type (`str`): The `model_type` of its config.json.
        shape (`dict`): The fields of its config.json that determine its size.
        learning_rate (`float`, *optional*): The learning rate of the published code.
    """

    model_type: str
    shape: dict = field(repr=False)
    learning_rate: float | None = None

    def config(self) -> PretrainedConfig:
        """Returns a configuration with these shapes. Models of the first Qwen family get a Qwen2 configuration."""
        if self.model_type == "qwen":
            return qwen2_config(self.shape, "a seed model")
        return CONFIG_MAPPING[self.model_type](**self.shape)


def _gpt2(width: int, n_layers: int, n_heads: int, learning_rate: float) -> SeedModel:
    return SeedModel("gpt2", {"n_embd": width, "n_layer": n_layers, "n_head": n_heads}, learning_rate)


def _qwen(width: int, mlp_width: int, n_layers: int, n_heads: int, vocab_size: int, trained_length: int) -> SeedModel:
    shape = {
        "hidden_size": width,
        "intermediate_size": 2 * mlp_width,
        "num_hidden_layers": n_layers,
        "num_attention_heads": n_heads,
        "vocab_size": vocab_size,
        "seq_length": trained_length,
        "layer_norm_epsilon": 1e-6,
    }
    return SeedModel("qwen", shape, 1e-5)


def _later_qwen(
    model_type: str, width: int, mlp_width: int, n_layers: int, n_heads: int, n_kv_heads: int, vocab_size: int,
    tie: bool = False,
) -> SeedModel:  # fmt: skip
    shape = {
        "hidden_size": width,
        "intermediate_size": mlp_width,
        "num_hidden_layers": n_layers,
        "num_attention_heads": n_heads,
        "num_key_value_heads": n_kv_heads,
        "vocab_size": vocab_size,
        "tie_word_embeddings": tie,
    }
    if model_type == "qwen3":
        shape["head_dim"] = 128
    return SeedModel(model_type, shape)


SEED_MODELS: dict[str, SeedModel] = {
    "gpt2": _gpt2(768, 12, 12, 5e-5),
    "gpt2-medium": _gpt2(1024, 24, 16, 5e-5),
    "gpt2-large": _gpt2(1280, 36, 20, 1e-5),
    "gpt2-xl": _gpt2(1600, 48, 25, 1e-5),
    "Qwen/Qwen-1_8B": _qwen(2048, 5504, 24, 16, 151_936, 8192),
    "Qwen/Qwen-7B": _qwen(4096, 11_008, 32, 32, 151_936, 8192),
    "Qwen/Qwen-14B": _qwen(5120, 13_696, 40, 40, 152_064, 2048),
    "Qwen/Qwen-72B": _qwen(8192, 24_576, 80, 64, 152_064, 32_768),
    "Qwen/Qwen2.5-0.5B": _later_qwen("qwen2", 896, 4864, 24, 14, 2, 151_936, tie=True),
    "Qwen/Qwen2.5-1.5B": _later_qwen("qwen2", 1536, 8960, 28, 12, 2, 151_936, tie=True),
    "Qwen/Qwen2.5-3B": _later_qwen("qwen2", 2048, 11_008, 36, 16, 2, 151_936, tie=True),
    "Qwen/Qwen2.5-7B": _later_qwen("qwen2", 3584, 18_944, 28, 28, 4, 152_064),
    "Qwen/Qwen2.5-14B": _later_qwen("qwen2", 5120, 13_824, 48, 40, 8, 152_064),
    "Qwen/Qwen2.5-32B": _later_qwen("qwen2", 5120, 27_648, 64, 40, 8, 152_064),
    "Qwen/Qwen2.5-72B": _later_qwen("qwen2", 8192, 29_568, 80, 64, 8, 152_064),
    "Qwen/Qwen3-0.6B-Base": _later_qwen("qwen3", 1024, 3072, 28, 16, 8, 151_936, tie=True),
    "Qwen/Qwen3-1.7B-Base": _later_qwen("qwen3", 2048, 6144, 28, 16, 8, 151_936, tie=True),
    "Qwen/Qwen3-4B-Base": _later_qwen("qwen3", 2560, 9728, 36, 32, 8, 151_936, tie=True),
    "Qwen/Qwen3-8B-Base": _later_qwen("qwen3", 4096, 12_288, 36, 32, 8, 151_936),
    "Qwen/Qwen3-14B-Base": _later_qwen("qwen3", 5120, 17_408, 40, 40, 8, 151_936),
}
