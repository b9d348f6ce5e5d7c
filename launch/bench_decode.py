"""Our beam search compared with others on the same weights: `bench.py --suite decode`.

  python launch/bench.py --suite decode --model base:6+6 --batch 1,16 --large 256,1024

The model is a plain T5 with random weights and unconstrained output, so that all sides compute the
same. The sides: ours; a flat beam search like T5X's on the same layers (encoder output repeated for
every beam, the whole cache reordered at every step); Hugging Face's `generate`; CTranslate2. The
last two run in the Python that ONESUG_COMPARE_PYTHON names (`bench_generate.py`). The sides take
turns, so that other load affects all of them. SIZE:6+6 is a size with 6 encoder and 6 decoder
layers.

It needs no gin, SeqIO or TensorFlow.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import pathlib
import platform
import tempfile
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
# The other sides need memory of the same GPU.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from bench_other import NotRun, Other  # noqa: E402

from onesug_jax.arrays import NEG_INF  # noqa: E402
from onesug_jax.decode.beam import BeamConfig, beam_search  # noqa: E402
from onesug_jax.decode.trie import Free  # noqa: E402
from onesug_jax.model.config import ModelConfig  # noqa: E402
from onesug_jax.model.seq2seq import Seq2Seq  # noqa: E402
from onesug_jax.model.unrolled import for_decoding  # noqa: E402

LENGTH, TOKENS, BEAMS, RETURNED, EOS = 96, 12, 32, 16, 1
VOCABULARY = 32_128  # T5's
CHECKED = 4  # requests whose lists are compared
SIDES = ("ours", "ours-graph", "flat", "transformers", "ctranslate2", "ctranslate2-int8")
LARGE_SIDES = ("ours", "transformers")
GRAPH = {  # on a GPU, launch the loop of the search as one graph, not kernel by kernel
    "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,"
    "DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE"
}


def size_of(name: str) -> dict:
    """ModelConfig fields of a size in gin_configs/models, or of SIZE:6+6, read without gin."""
    size, _, layers = name.partition(":")
    path = pathlib.Path(size)
    if path.suffix != ".gin":
        path = ROOT / "gin_configs" / "models" / f"{size}.gin"
    fields: dict[str, Any] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition("#")[0].partition(" = ")
        if key.startswith("include "):
            fields |= size_of(str(path.parent / ast.literal_eval(key.split(" ", 1)[1])))
        elif key.startswith("ModelConfig."):
            fields[key.removeprefix("ModelConfig.")] = ast.literal_eval(value.strip())
    if layers:
        fields["encoder_layers"], fields["decoder_layers"] = map(int, layers.split("+"))
    return fields


def drawn(config: ModelConfig, sharpness: float = 1.0):
    """Random parameters at the scale of the initialiser; `sharpness` multiplies the head."""
    tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    model = Seq2Seq(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)["params"]
    from flax.core import meta

    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        if name == "scale":
            return jnp.ones(leaf.shape, jnp.float32)
        if name == "bias":
            return jnp.zeros(leaf.shape, jnp.float32)
        fan_in = {
            "query": config.d_model * (config.head_dim if len(leaf.shape) > 2 else 1),
            "out": config.attention_width,
            "down": config.d_ff,
            "table": config.num_heads,
        }.get(name, config.d_model)
        values = rng.standard_normal(leaf.shape, np.float32) * fan_in**-0.5
        return jnp.asarray(values * (sharpness if name == "head" else 1.0))

    return jax.tree_util.tree_map_with_path(draw, meta.unbox(shapes))


def machine() -> str:
    """A line about the device, the processor and versions."""
    device = jax.devices()[0]
    return (
        f"{jax.device_count()} x {device.device_kind}, {os.cpu_count()} cores, jax "
        f"{jax.__version__}, Python {platform.python_version()}"
    )


def row(name: str, milliseconds: np.ndarray, base: float | None = None, lists: int = 1) -> str:
    """One line of a table: median, 99th percentile, lists/s, ratio to `base`."""
    ratio = "" if base is None else f"  x{np.median(milliseconds) / base:.2f}"
    median, tail = np.median(milliseconds), np.percentile(milliseconds, 99)
    return f"  {name:<50} {median:9.2f} {tail:9.2f} {1000 * lists / median:9.1f}{ratio}"


def flat_beam(model: Seq2Seq, config: BeamConfig):
    """Beams as rows of the batch, as in T5X: `(params, tokens) -> ids, scores`.

    The encoder's output and the cross-attention's keys and values are repeated for every beam, and
    the cache of every beam is gathered at every step.
    """
    c, beams, length = model.config, config.beams, config.max_length

    def begin(params, tokens):
        encoded: Any = model.apply({"params": params}, tokens, method="encode")
        encoded, tokens = jnp.repeat(encoded, beams, 0), jnp.repeat(tokens, beams, 0)
        return tokens, model.apply({"params": params}, encoded, method="cross_keys_values")

    def search(params, tokens):
        batch = len(tokens)
        repeated, cross = begin(params, tokens)
        ancestry = jnp.zeros((batch * beams, 1, length), jnp.int32)
        empty = model.empty_cache(batch * beams, length, 1)

        def body(t, s):
            written, totals, cache = s
            last = written[:, :, t - 1].reshape(-1, 1) * (t > 0)
            scores, cache = model.apply(
                {"params": params},
                last,
                t,
                ancestry,
                cache,
                cross,
                repeated,
                method="decode_step",
            )
            logs = jax.nn.log_softmax(scores.vocabulary[:, 0]).at[:, EOS].set(NEG_INF)
            pool = (totals.reshape(-1, 1) + logs).reshape(batch, -1)
            totals, flat = jax.lax.top_k(pool, beams)
            parent, token = flat // c.vocab_size, flat % c.vocab_size
            written = jnp.take_along_axis(written, parent[..., None], axis=1)
            written = written.at[:, :, t].set(token)
            rows = (jnp.arange(batch)[:, None] * beams + parent).ravel()
            return written, totals, jax.tree.map(lambda x: x[rows], cache)

        written = jnp.zeros((batch, beams, length), jnp.int32)
        totals = jnp.full((batch, beams), NEG_INF).at[:, 0].set(0.0)
        written, totals, _ = jax.lax.fori_loop(0, length, body, (written, totals, empty))
        return written[:, : config.returned], totals[:, : config.returned]

    return jax.jit(search)


class InProcess:
    """A search in this process: `search(params, tokens) -> ids [B, R, T], scores [B, R]`."""

    def __init__(self, name: str, search, params):
        self.name, self._search, self._params = name, search, params

    def write(self, tokens: np.ndarray, times: int) -> tuple[list[float], np.ndarray]:
        """The milliseconds of each repetition, and the lists."""
        inputs, spent = jnp.asarray(tokens), []
        for _ in range(times):
            began = time.perf_counter()
            ids, scores = self._search(self._params, inputs)
            ids, scores = np.asarray(ids), np.asarray(scores)
            spent.append(1000 * (time.perf_counter() - began))
        return spent, ids[:CHECKED]

    def close(self) -> None:
        """Nothing to close."""


class OtherProcess(Other):
    """`bench_generate.py` in its own Python."""

    def __init__(self, scratch: str, **settings):
        super().__init__("bench_generate.py", settings)
        self._scratch, self.name = scratch, self.ready["how"]

    def write(self, tokens: np.ndarray, times: int) -> tuple[list[float], np.ndarray]:
        """See `InProcess.write`."""
        path = os.path.join(self._scratch, "requests.npy")
        np.save(path, tokens)
        answer = self.request(json.dumps({"requests": path, "times": times, "lists": CHECKED}))
        if "error" in answer:
            raise NotRun(f"not run: {answer['error'][:160]}")
        return answer["milliseconds"], np.array(answer["ids"])


def sides_of(wanted, config: ModelConfig, params, scratch: str) -> dict:
    """The available sides by their names in SIDES; prints which are not available."""
    cpu = jax.default_backend() == "cpu"
    model, ready = for_decoding(Seq2Seq(config), params)
    beams = BeamConfig(BEAMS, RETURNED, alpha=0.0, max_length=TOKENS, eos_id=EOS, unfinished=True)
    allowed = Free(jnp.arange(config.vocab_size) != EOS)

    def ours(params, tokens):
        result = beam_search(model, params, tokens, allowed, beams)
        return result.sequences, result.scores

    sides: dict = {}
    if "ours" in wanted:
        sides["ours"] = InProcess("ours", jax.jit(ours), ready)
    if "ours-graph" in wanted and not cpu:
        graph = jax.jit(ours, compiler_options=GRAPH)
        sides["ours-graph"] = InProcess("ours, the loop as one CUDA graph", graph, ready)
    if "flat" in wanted:
        sides["flat"] = InProcess("flat beam, as T5X has it", flat_beam(model, beams), ready)
    others = [side for side in wanted if side != "flat" and not side.startswith("ours")]
    folder = os.path.join(scratch, "t5")
    if others and os.environ.get("ONESUG_COMPARE_PYTHON"):
        from onesug_jax.model.hf import write_t5

        write_t5(folder, config, params)
    settings = {
        "folder": folder,
        "device": "cpu" if cpu else "cuda",
        "threads": len(os.sched_getaffinity(0)),
        "length": TOKENS,
        "beams": BEAMS,
        "returned": RETURNED,
    }
    for side in others:
        engine, _, kind = side.partition("-")
        try:
            if engine == "ctranslate2" and not cpu:
                raise NotRun("not run: timed on a CPU only")
            dtype = kind or config.dtype
            sides[side] = OtherProcess(scratch, engine=engine, dtype=dtype, **settings)
        except NotRun as error:
            print(f"  {side}: {error}")
    return sides


def in_turn(sides: dict, tokens: np.ndarray, seconds: float) -> tuple[dict, dict]:
    """Milliseconds and lists of every side; the sides take turns for about `seconds` each.

    A side that fails prints the reason and is left out; a slower one is timed once.
    """
    spent, lists = {}, {}
    counts = {}
    for name, side in list(sides.items()):
        try:
            side.write(tokens, 1)
            first, lists[name] = side.write(tokens, 1)
        except (NotRun, RuntimeError) as error:
            print(f"  {side.name}: {str(error).splitlines()[0][:160]}")
            continue
        spent[name] = first
        counts[name] = int(np.clip(np.ceil(1000 * seconds / 3 / first[0] - 0.5), 0, 100))
    for _ in range(3):
        for name, times in counts.items():
            if not times:
                continue
            spent[name] = spent[name] + sides[name].write(tokens, times)[0]
    return spent, lists


def agreement(ours: np.ndarray, theirs: np.ndarray) -> str:
    """The share of our lists that is in theirs, and the share of equal first entries."""
    pairs = list(zip(ours.tolist(), theirs.tolist(), strict=True))
    shared = [len({*map(tuple, a)} & {*map(tuple, b)}) / len(a) for a, b in pairs]
    first = np.mean([a[0] == b[0] for a, b in pairs])
    return f"{np.mean(shared):.0%} of the lists, {first:.0%} of their first"


def free(name: str, batches, large, wanted, seconds: float, vocabulary: int) -> None:
    """Prints the table of one size."""
    cpu = jax.default_backend() == "cpu"
    fields = size_of(name) | {"vocab_size": vocabulary, "dropout": 0.0, "tie_embeddings": False}
    config = ModelConfig(**fields | {"dtype": "float32" if cpu else "bfloat16"})
    params = drawn(config, sharpness=4.0)
    print(
        f"\n{name}: {config.parameters():,} parameters, {config.encoder_layers}+"
        f"{config.decoder_layers} layers, {config.dtype}, vocabulary {vocabulary:,}, input "
        f"{LENGTH}, {TOKENS} new tokens, {BEAMS} beams, {RETURNED} returned"
    )
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as scratch:
        sides = sides_of(wanted, config, params, scratch)
        for batch in (*batches, *large):
            if batch in large:
                sides = {name: side for name, side in sides.items() if name in LARGE_SIDES}
            tokens = rng.integers(2, vocabulary, (batch, LENGTH)).astype(np.int32)
            spent, lists = in_turn(sides, tokens, seconds)
            print(f"{f'batch of {batch}':<52} {'median ms':>9} {'p99':>9} {'lists/s':>9}")
            base = float(np.median(spent["ours"])) if "ours" in spent else None
            for side, times in spent.items():
                line = row(sides[side].name, np.array(times), base, batch)
                if side != "ours" and "ours" in lists:
                    line += f"  same: {agreement(lists['ours'], lists[side])}"
                print(line, flush=True)
        for side in sides.values():
            side.close()


def decode(sizes, options) -> None:
    """Prints a table for every size."""
    batches, large = (
        [int(n) for n in each.split(",") if n] for each in (options.batch or "1,16", options.large)
    )
    for name in sizes:
        began = time.perf_counter()
        wanted = [side for side in SIDES if side in options.sides.split(",")]
        free(name, batches, large, wanted, options.seconds, options.vocabulary)
        print(f"  {time.perf_counter() - began:.0f} s in total")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the suite."""
    parser.add_argument("--batch", help="requests per batch (decode: 1,16)")
    parser.add_argument("--large", default="", help="more, for ours and `generate` only: 256,1024")
    parser.add_argument("--sides", default=",".join(SIDES), help="some of the default")
    parser.add_argument("--seconds", type=float, default=3.0, help="approximate time per side")
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY, help="tokens")
