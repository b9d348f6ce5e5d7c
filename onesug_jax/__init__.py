"""OneSug in JAX: one encoder-decoder writes the list of queries to show while the user types.

`__all__` lists the public interface; CHANGELOG.md records its changes. Each name is imported on
first use, so `import onesug_jax` loads neither JAX nor TensorFlow.

>>> import onesug_jax
>>> onesug_jax.hr_at([1, 0, 3, 20], k=16)
0.5
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onesug_jax.align.losses import rwr_release as rwr_loss
    from onesug_jax.align.pretrain import pretrain_stage
    from onesug_jax.align.rewards import RewardConfig, reward_table
    from onesug_jax.align.rwr import PreferenceConfig
    from onesug_jax.decode.beam import BeamConfig, beam_search
    from onesug_jax.decode.trie import Free
    from onesug_jax.errors import UserError
    from onesug_jax.evaluate.evaluator import evaluate as evaluate_suggesters
    from onesug_jax.evaluate.metrics import hr_at, mrr_at
    from onesug_jax.model.config import ModelConfig
    from onesug_jax.model.seq2seq import Seq2Seq
    from onesug_jax.retrieval.prefix_index import PrefixIndex
    from onesug_jax.retrieval.tree_search import SearchConfig
    from onesug_jax.semantic_ids.quantiser import Quantiser
    from onesug_jax.semantic_ids.rqvae import RqVaeConfig
    from onesug_jax.semantic_ids.rqvae_training import train_rqvae
    from onesug_jax.suggester import Suggester
    from onesug_jax.tasks.features import FeatureSpec, Featurizer, Request
    from onesug_jax.tasks.vocabulary import Vocabulary
    from onesug_jax.text_encoder.encoder import EncoderSpec, TextEncoder
    from onesug_jax.train.checkpoint import load_params
    from onesug_jax.train.loop import fit
    from onesug_jax.train.mesh import make_mesh
    from onesug_jax.train.optimizer import make_optimizer

__version__ = "0.1.0"

# Public name -> its module, or `module:attribute` if its name in the module differs.
_PLACES = {
    "BeamConfig": "decode.beam",
    "EncoderSpec": "text_encoder.encoder",
    "FeatureSpec": "tasks.features",
    "Featurizer": "tasks.features",
    "Free": "decode.trie",
    "ModelConfig": "model.config",
    "PreferenceConfig": "align.rwr",
    "PrefixIndex": "retrieval.prefix_index",
    "Quantiser": "semantic_ids.quantiser",
    "Request": "tasks.features",
    "RewardConfig": "align.rewards",
    "RqVaeConfig": "semantic_ids.rqvae",
    "SearchConfig": "retrieval.tree_search",
    "Seq2Seq": "model.seq2seq",
    "Suggester": "suggester",
    "TextEncoder": "text_encoder.encoder",
    "UserError": "errors",
    "Vocabulary": "tasks.vocabulary",
    "beam_search": "decode.beam",
    "evaluate_suggesters": "evaluate.evaluator:evaluate",
    "fit": "train.loop",
    "hr_at": "evaluate.metrics",
    "load_params": "train.checkpoint",
    "make_mesh": "train.mesh",
    "make_optimizer": "train.optimizer",
    "mrr_at": "evaluate.metrics",
    "pretrain_stage": "align.pretrain",
    "reward_table": "align.rewards",
    "rwr_loss": "align.losses:rwr_release",
    "train_rqvae": "semantic_ids.rqvae_training",
}

__all__ = [
    "BeamConfig",
    "EncoderSpec",
    "FeatureSpec",
    "Featurizer",
    "Free",
    "ModelConfig",
    "PreferenceConfig",
    "PrefixIndex",
    "Quantiser",
    "Request",
    "RewardConfig",
    "RqVaeConfig",
    "SearchConfig",
    "Seq2Seq",
    "Suggester",
    "TextEncoder",
    "UserError",
    "Vocabulary",
    "beam_search",
    "evaluate_suggesters",
    "fit",
    "hr_at",
    "load_params",
    "make_mesh",
    "make_optimizer",
    "mrr_at",
    "pretrain_stage",
    "reward_table",
    "rwr_loss",
    "train_rqvae",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _PLACES[name].partition(":")
    value = getattr(importlib.import_module(f"{__name__}.{module}"), attribute or name)
    globals()[name] = value  # later look-ups do not call this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
