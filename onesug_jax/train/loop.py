"""The one training loop of every stage: `fit`.

Read `fit` from top to bottom. It goes on where a killed run stopped, with the same bits: the state
comes from the newest intact checkpoint, the data from `batch_at(step)`, the randomness from (seed,
step). SIGTERM and SIGINT save first. A loss or gradient that is not finite stops it before anything
spoilt is saved.
"""

import math
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh

from onesug_jax.errors import UserError
from onesug_jax.train import mesh as meshes
from onesug_jax.train.checkpoint import Checkpoints, check_shapes, load_params
from onesug_jax.train.interruption import Interruption, Preempted
from onesug_jax.train.optimizer import averaged
from onesug_jax.train.prefetch import Prefetch
from onesug_jax.train.report import Profile, Report, Window
from onesug_jax.train.step import (
    Stage,
    abstract_state,
    batch_size,
    init_state,
    make_train_step,
    shardings_of,
)

# Steps handed to the devices ahead of the one they work on: keeps them busy, and bounds what waits
# in memory.
AHEAD = 2
_LOOK = 0.0005  # seconds between two looks at what comes first, the next batch or idle devices


class NonFiniteLoss(UserError):
    """The loss or the gradient was not finite; the checkpoints hold good states only."""


@dataclass(frozen=True)
class FitResult:
    """What `fit` leaves.

    Attributes:
      params: of the last step, on the mesh; their moving average where the optimizer maintains
        one. The best ones: `load_params(folder)`.
      step: updates done (fewer than asked after an early stop).
      best_step, best_value: of the best metric; None where none was asked for.
      folder: where checkpoints and reports lie.
    """

    params: Any
    step: int
    best_step: int | None
    best_value: float | None
    folder: str


def fit(
    stage: Stage,
    *,
    batch_at: Callable[[int], Mapping[str, np.ndarray]],
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
    steps: int,
    seed: int,
    folder: str | os.PathLike,
    accumulation: int = 1,
    log_every: int = 50,
    checkpoint_every: int = 500,
    keep: int = 2,
    evaluate_every: int = 0,
    evaluate_fn: Callable[[Any, int], Mapping[str, float]] | None = None,
    best_metric: str | None = None,
    higher_is_better: bool = True,
    patience: int = 0,
    params_from: Any = None,
    fingerprint: Mapping[str, Any] | None = None,
    on_mismatch: str = "raise",
    profile_steps: tuple[int, int] | None = None,
    flops_per_example: float | None = None,
    peak_flops: float | None = None,
) -> FitResult:
    """Train `stage` for `steps` updates, or what is left of them; returns at once when all are
    done.

    Args:
      batch_at: step -> this process's part of that step's batch (`mesh.batch_part` says which
        part), arrays `[B_local, ...]`; a pure function. Shapes may differ from step to step: each
        is compiled once.
      steps: updates in all, those of earlier runs included.
      seed: of the initial parameters and of all randomness in the loss.
      folder: checkpoints, `metrics.jsonl`, `tensorboard/`, and `best/` where `best_metric` is
        given.
      accumulation: microbatches a batch is worked off in.
      evaluate_every: in updates, and after the last one; 0: never. `evaluate_fn(params, step)`
        gives numbers by name; in a run of several processes it gives all of them the same.
      best_metric: the name among them by which `best/` is kept. `patience`: stop after so many
        evaluations without a better one (0: never).
      params_from: initial parameters: a stage's folder, a tree like `stage.init_fn` gives, or a
        function that makes such a tree, called only where no checkpoint is gone on from.
      fingerprint: settings under which a checkpoint may be gone on from; `stage`, `seed` and
        `accumulation` are always among them. `on_mismatch`: "raise", or "restart": delete what is
        there and begin anew.
      profile_steps: (first, last) updates to trace into `folder/profile`, 1 being the first; a run
        that goes on beyond the first traces those that are left.
      flops_per_example, peak_flops: for the utilisation; FLOP/s of one device.

    Raises:
      UserError: settings or files that do not fit, named; `NonFiniteLoss` is one.
      Preempted: after SIGTERM or SIGINT, once the state is saved.
    """
    # ------------------------------------------------------------ what was asked for
    if steps < 1 or min(log_every, checkpoint_every) < 1 or evaluate_every < 0:
        raise UserError(
            f"steps={steps}, log_every={log_every}, checkpoint_every={checkpoint_every}, "
            f"evaluate_every={evaluate_every}: expected at least 1 (evaluate_every: 0 is never)."
        )
    if on_mismatch not in ("raise", "restart"):
        raise UserError(f'on_mismatch={on_mismatch!r}: expected "raise" or "restart".')
    if best_metric and not (evaluate_every and evaluate_fn):
        raise UserError(f"best_metric={best_metric!r} needs evaluate_every and an evaluation.")
    match profile_steps:
        case None:
            pass
        case [int(first), int(last)] if 1 <= first <= min(last, steps):
            pass
        case _:
            raise UserError(
                f"profile_steps={profile_steps}: expected (first, last) with 1 <= first <= last, "
                f"and first at most {steps}, the number of steps."
            )
    folder = os.fspath(folder)
    settings = {
        "stage": stage.name,
        "seed": seed,
        "accumulation": accumulation,
        **(fingerprint or {}),
    }

    # ------------------------------------------------------------ shapes and layout, nothing
    # computed yet
    like = abstract_state(stage, optimizer, mesh)
    train_step = make_train_step(stage, optimizer, mesh, shardings_of(like), accumulation, seed)

    with Checkpoints(folder, keep=keep, fingerprint=settings, say=_say) as checkpoints:
        # -------------------------------------------------------- the newest checkpoint, or a fresh
        # start
        found = checkpoints.restore(like, on_mismatch=on_mismatch)
        if found is None:
            checkpoints.clear()  # a best of a run that never came to its first checkpoint
            start = 0
            notes: dict[str, Any] = {}
            initial = None if params_from is None else _initial_params(params_from, like.params)
            state = init_state(stage, optimizer, mesh, seed, initial)
        else:
            state, notes = found
            start = int(state.step)
        best, evaluated = notes.get("best"), notes.get("evaluated", 0)

        def due(done: int) -> bool:
            """Whether an evaluation belongs to this step and has not been made."""
            regular = evaluate_every and (done % evaluate_every == 0 or done == steps)
            return bool(regular and evaluate_fn and done > evaluated)

        def gave_up() -> bool:
            return bool(patience and best and evaluated - best["step"] >= patience * evaluate_every)

        def result(done: int) -> FitResult:
            step, value = (best["step"], best["value"]) if best else (None, None)
            return FitResult(weights(), done, step, value, folder)

        def weights() -> Any:
            """What is evaluated and handed on."""
            return averaged(state.opt_state, state.params)

        if (start >= steps and not due(start)) or gave_up():
            _say(f"{stage.name}: {start} of {steps} steps are done already in {folder}")
            return result(start)

        report = Report(
            folder,
            name=stage.name,
            steps=steps,
            start=start,
            flops_per_example=flops_per_example,
            peak_flops=peak_flops,
            devices=mesh.size,
        )
        batches = Prefetch(lambda step: _prepare(stage, mesh, batch_at(step)), start, steps)
        with (
            report,
            batches,
            Interruption() as interruption,
            Profile(folder, profile_steps, report.clock) as profile,
        ):
            if start:
                report.say(f"{stage.name}: going on from step {start} of {steps}")
            clock, compiled = report.clock, set()
            running: deque[Any] = deque()
            window = Window(notes.get("window"))
            examples = tokens = 0

            def stop_if_bad() -> None:
                bad = int(state.bad_step)
                if bad >= 0:
                    _dump_and_raise(stage, batch_at, bad, folder)

            def evaluate(done: int) -> None:
                nonlocal best, evaluated
                assert evaluate_fn is not None  # `due` says so
                with clock.apart("evaluate"):
                    values = dict(evaluate_fn(weights(), done))
                better = best_metric is not None and _better(
                    values, best_metric, best, higher_is_better
                )
                if better and best_metric:
                    best = {
                        "metric": best_metric,
                        "step": done,
                        "value": float(values[best_metric]),
                    }
                    with clock.apart("save"):
                        checkpoints.save_best(done, weights(), {"best": best})
                evaluated = done
                report.evaluated(done, values, best=better)

            def save(done: int) -> None:
                stop_if_bad()
                with clock.apart("save"):
                    kept = {"best": best, "evaluated": evaluated, "window": window.sums()}
                    checkpoints.save(done, state, kept)

            # ---------------------------------------------------- an evaluation that a stopped run
            # still owed
            if due(start):
                evaluate(start)

            # ---------------------------------------------------- the updates
            done = start
            while done < steps and not gave_up():
                profile.before(done + 1)
                while not batches.ready() and _busy(running):
                    time.sleep(_LOOK)  # no batch yet, but nobody waits for it either
                with clock.apart("data"):
                    size, read, shape, batch = batches.get(done)
                if shape in compiled:
                    state, metrics = train_step(state, batch, stage.frozen)
                    examples += size
                    tokens += read or 0
                else:  # tracing and compiling happen inside the first call with a new shape
                    report.say(f"{stage.name}: compiling for batches of {_shapes(shape)}")
                    with clock.apart("compile"):
                        state, metrics = train_step(state, batch, stage.frozen)
                        jax.block_until_ready(metrics)
                    compiled.add(shape)
                done += 1
                running.append(metrics)
                window.add(metrics)
                if len(running) > AHEAD:
                    jax.block_until_ready(running.popleft())
                profile.after(done, metrics)

                # ------------------------------------------------ what follows from it
                if done % log_every == 0 or done == steps:
                    stop_if_bad()
                    report.progress(
                        done, window.means(), examples, None if read is None else tokens
                    )
                told = interruption.told(done)
                if due(done) and not told:
                    stop_if_bad()
                    evaluate(done)
                if done % checkpoint_every == 0 or done == steps or told or gave_up():
                    save(done)
                if told:
                    with clock.apart("save"):
                        checkpoints.wait()
                    report.say(
                        f"{stage.name}: told to stop; saved step {done}; the same command goes on"
                    )
                    raise Preempted(told, done)
            if best and gave_up():
                report.say(
                    f"{stage.name}: {patience} evaluations without a better {best_metric} than "
                    f"step {best['step']}'s {best['value']:.4g}; stopping at step {done}"
                )
            if best_metric is None and weights() is not state.params:
                checkpoints.save_best(done, weights(), {"best": None})  # else nobody would find it
            checkpoints.wait()
            return result(done)


def _shapes(shape: tuple[tuple[str, tuple[int, ...]], ...]) -> str:
    """The different shapes among a batch's arrays, in words."""
    return ", ".join(dict.fromkeys(str(list(sizes)) for _, sizes in shape))


def _busy(running: deque) -> bool:
    """Whether the devices still work on an update handed to them."""
    return bool(running) and not all(x.is_ready() for x in jax.tree.leaves(running[-1]))


def _prepare(stage: Stage, mesh: Mesh, local: Mapping[str, np.ndarray]):
    """Examples and tokens of the whole batch, this part's shapes, and the batch on the devices."""
    _, count = meshes.batch_part(mesh)
    size = batch_size(local) * count
    tokens = None if stage.tokens_fn is None else int(stage.tokens_fn(local)) * count
    shape = tuple((name, np.shape(x)) for name, x in sorted(local.items()))
    return size, tokens, shape, meshes.global_batch(mesh, dict(local))


def _initial_params(source: Any, like: Any) -> Any:
    """Parameters from a stage's folder, a tree or what makes one, laid out as this stage wants."""
    if isinstance(source, str | os.PathLike):
        params, where = load_params(source, shardings_of(like)), source
    else:
        params, where = meshes.unbox(source() if callable(source) else source), "params_from"
    check_shapes(where, params, like)
    return jax.tree.map(
        lambda leaf, want: jax.device_put(leaf.astype(want.dtype), want.sharding), params, like
    )


def _better(values: Mapping[str, float], name: str, best: Any, higher_is_better: bool) -> bool:
    if name not in values:
        raise UserError(f"best_metric={name!r}: the evaluation gives {', '.join(sorted(values))}.")
    value = float(values[name])
    if not math.isfinite(value):
        return False
    sign = 1 if higher_is_better else -1
    return best is None or sign * value > sign * best["value"]


def _dump_and_raise(stage: Stage, batch_at: Callable, step: int, folder: str) -> None:
    """Keep the batch that spoilt the update for looking at, and stop."""
    suffix = f".process{jax.process_index()}" if jax.process_count() > 1 else ""
    path = epath.Path(folder) / f"nonfinite_batch_{step}{suffix}.npz"
    with path.open("wb") as file:
        np.savez(file, **batch_at(step))
    raise NonFiniteLoss(
        f"{stage.name}: the loss or gradient of update {step + 1} (batch {step}) is not finite. "
        f"That batch: {path}. The checkpoints hold good states only. Lower the learning rate, clip "
        "harder, or look at the batch, then start again."
    )


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)
