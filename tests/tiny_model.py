"""The sizes of the tests' models: as small as attention with two heads can be."""

from onesug_jax.model.config import ModelConfig

SIZES = {"d_model": 16, "num_heads": 2, "head_dim": 8, "d_ff": 32}
LAYERS = {"encoder_layers": 1, "decoder_layers": 1}


def tiny_config(vocab_size: int, **fields) -> ModelConfig:
    """A configuration with one encoder layer and one decoder layer; `fields` replace values."""
    return ModelConfig(**{"vocab_size": vocab_size, **SIZES, **LAYERS, **fields})
