"""The training loop of every stage: `fit`.

It resumes a killed run with the same bits: the state comes from the newest intact checkpoint, the
data from `batch_at(step)`, the randomness from (seed, step). Settings may change between runs; the
history records at which step. SIGTERM and SIGINT save first. A loss or gradient that is not finite
stops the run before a bad state is saved.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from onesug_jax.train import distributed, history
from onesug_jax.train.checkpoint import Checkpoints
from onesug_jax.train.checks import check_fit
from onesug_jax.train.evaluations import Evaluations
from onesug_jax.train.inflight import InFlight
from onesug_jax.train.interruption import Interruption, Preempted
from onesug_jax.train.nonfinite import save_batch_and_raise
from onesug_jax.train.optimizer import averaged
from onesug_jax.train.prefetch import Prefetch, prepare_batch
from onesug_jax.train.profile import Profile
from onesug_jax.train.report import Report, Window
from onesug_jax.train.resume import begin
from onesug_jax.train.states import HERE, States
from onesug_jax.train.step import make_train_step
from onesug_jax.train.train_state import Stage, abstract_state


@dataclass(frozen=True)
class FitResult:
    """The result of `fit`.

    Attributes:
      params: of the last step, on the mesh, or their moving average if the optimizer maintains
        one. `load_params(folder)` reads the best ones.
      step: completed updates (fewer than `steps` after an early stop).
      best_step, best_value: of the best metric; None without `best_metric`.
      folder: the folder of checkpoints and reports.
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
    batch_size: int,
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
    steps: int,
    seed: int,
    folder: str | os.PathLike,
    identity: Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
    accumulation: int = 1,
    log_every: int = 50,
    checkpoint_every: int = 500,
    keep: int = 2,
    evaluate_every: int = 0,
    evaluate_fn: Callable[[Any, int], Mapping[str, float]] | None = None,
    best_metric: str | None = None,
    patience: int = 0,
    params_from: Any = None,
    profile_steps: tuple[int, int] | None = None,
    flops_per_example: float | None = None,
    peak_flops: float | None = None,
    compiler_options: Mapping[str, Any] | None = None,
    states: States = HERE,
) -> FitResult:
    """Train `stage` until `steps` updates are complete. An error in the settings leaves the folder
    unchanged.

    Args:
      batch_at: step -> this process's rows of that step's batch (`mesh.process_batch_shard`),
        arrays `[B_local, ...]`; a pure function. Shapes may differ from step to step: each is
        compiled once.
      batch_size: examples of an update, over all processes.
      steps: updates in all, including those of earlier runs.
      seed: of the initial parameters and of all randomness in the loss.
      folder: checkpoints, `metrics.jsonl`, `history.jsonl`, `tensorboard/`, and `best/` with
        `best_metric`.
      identity: JSON values that must equal those of a checkpoint, else it is refused: the model's
        configuration, fingerprints of the vocabulary and of the examples. "stage" is `stage.name`
        by default; the command line may have another name.
      settings: further JSON values for the history; they may change between runs. The history
        includes the arguments of `fit` and `make_optimizer` by itself.
      accumulation: microbatches per batch.
      evaluate_every: updates between evaluations; the last update is evaluated too; 0: never.
        `evaluate_fn(params, step)` returns numbers by name, and optionally `lists`, the same in
        every process.
      best_metric: the name of the number that selects `best/`. `patience`: evaluations without
        improvement after which to stop (0: never).
      params_from: initial parameters if there is no checkpoint: a stage's folder, a tree like that
        of `stage.init_fn`, or a function that returns one.
      profile_steps: (first, last) updates to trace into `folder/profile`, counted from 1; a run
        that resumes after the first traces the rest.
      flops_per_example, peak_flops: for the utilisation; FLOP/s of one device.
      compiler_options: XLA's, for the update.
      states: the place of `checkpoints/` and `best/` if it is not `folder`: a bucket.

    Raises:
      UserError: names the wrong setting or file; `NonFiniteLoss` is a subclass.
      Preempted: after SIGTERM or SIGINT, when the state is saved.

    Examples:
      >>> import tempfile
      >>> import numpy as np
      >>> from onesug_jax import ModelConfig, fit, make_mesh, make_optimizer, pretrain_stage
      >>> config = ModelConfig(vocab_size=64, d_model=16, d_ff=32, encoder_layers=1)
      >>> tokens = np.tile(np.array([5, 6, 1, 0], np.int32), (8, 1))
      >>> batch = {"encoder_input_tokens": tokens, "decoder_input_tokens": np.roll(tokens, 1, 1)}
      >>> batch |= {"decoder_target_tokens": tokens, "decoder_loss_weights": 1.0 * (tokens > 0)}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     amount = {"batch_size": 8, "steps": 2, "seed": 0}
      ...     devices = {"mesh": make_mesh(), "optimizer": make_optimizer(learning_rate=1e-2)}
      ...     place = {"folder": folder, "identity": {"model": "tiny"}}
      ...     result = fit(
      ...         pretrain_stage(config), batch_at=lambda step: batch, **amount, **devices, **place
      ...     )
      pretrain: ...
      >>> result.step
      2
    """
    # ------------------------------------------------------------ checks; no file changes yet
    name, folder = stage.name, os.fspath(folder)
    every = evaluate_every if evaluate_fn else 0
    plan: dict[str, Any] = {
        "steps": steps,
        "batch_size": batch_size,
        "accumulation": accumulation,
        "evaluate_every": every,
        "best_metric": best_metric,
        "mesh": dict(mesh.shape),
    }
    intervals = {"log_every": log_every, "checkpoint_every": checkpoint_every, "keep": keep}
    check_fit(name, **plan | intervals, profile_steps=profile_steps)
    plan["processes"] = jax.process_count()
    like = abstract_state(stage, optimizer, mesh)
    train_step = make_train_step(stage, optimizer, mesh, accumulation, seed, compiler_options)
    recorded = {**plan, "patience": patience, "seed": seed, **getattr(optimizer, "settings", {})}
    recorded |= settings or {}

    identity = {"stage": name, **identity}
    with Checkpoints(states.url or folder, keep=keep, identity=identity) as checkpoints:
        # -------------------------------------------------------- a checkpoint or a fresh start
        beginning = begin(checkpoints, stage, optimizer, mesh, like, seed, params_from)
        state, start, notes = beginning.state, beginning.step, beginning.notes
        evaluations = Evaluations(every, steps, best_metric, patience)
        evaluations.go_on(notes.get("evaluated", 0), notes.get("best"))

        def weights() -> Any:
            """The parameters to evaluate and to return."""
            return averaged(state.opt_state, state.params)

        def result(done: int) -> FitResult:
            best = evaluations.best or {}
            return FitResult(weights(), done, best.get("step"), best.get("value"), folder)

        finished = start > steps or (start == steps and not evaluations.due(start))
        if finished or evaluations.exhausted():
            reason = "" if finished else f"; patience={patience} ended training there"
            checkpoints.say(
                f"{name}: {start} of {steps} steps are already done in {folder}{reason}"
            )
            return result(start)

        rates: dict[str, Any] = dict(flops_per_example=flops_per_example, peak_flops=peak_flops)
        report = Report(folder, name=name, steps=steps, start=start, devices=mesh.size, **rates)
        batches = Prefetch(lambda step: prepare_batch(stage, mesh, batch_at(step)), start, steps)
        with (
            report,
            batches,
            Interruption() as interruption,
            Profile(folder, profile_steps, report.clock) as profile,
        ):
            report.begin(history.record(folder, start, recorded, beginning.change))
            clock, window = report.clock, Window(notes.get("window"))
            updates = InFlight(name, train_step, stage.frozen, report)

            def stop_if_bad() -> None:
                bad = int(state.bad_step)
                if bad >= 0:
                    save_batch_and_raise(name, batch_at, bad, folder)

            def evaluate(done: int) -> None:
                stop_if_bad()
                assert evaluate_fn is not None  # otherwise no evaluation is due
                with clock.measure_phase("evaluate"):
                    values = dict(evaluate_fn(weights(), done))
                better = evaluations.add(done, values)
                if better:
                    with clock.measure_phase("save"):
                        checkpoints.save_best(done, weights(), {"best": evaluations.best})
                report.evaluated(done, values, best=better)

            def save(done: int) -> None:
                stop_if_bad()
                notes = {"best": evaluations.best, "evaluated": evaluations.last}
                with clock.measure_phase("save"):
                    if distributed.is_primary():
                        states.push()
                    checkpoints.save(done, state, {**notes, "window": window.sums()})

            # ---------------------------------------------------- the evaluation of a stopped run
            if evaluations.due(start):
                evaluate(start)

            # ---------------------------------------------------- the updates
            done = start
            while done < steps and not evaluations.exhausted():
                profile.before(done + 1)
                batches.wait_while(updates.busy)  # waiting counts as "data" only if devices idle
                with clock.measure_phase("data"):
                    prepared = batches.get(done)
                state, metrics = updates.run(state, prepared)
                done += 1
                window.add(metrics)
                profile.after(done, metrics)

                if done % log_every == 0 or done == steps:
                    stop_if_bad()
                    report.progress(done, window.means(), updates.examples, updates.tokens)
                signum = interruption.stop_signal(done)
                if evaluations.due(done) and not signum:
                    evaluate(done)
                last = done == steps or signum or evaluations.exhausted()
                if done % checkpoint_every == 0 or last:
                    save(done)
                if signum:
                    with clock.measure_phase("save"):
                        checkpoints.wait()
                    report.say(f"{name}: stopped; saved step {done}; the same command resumes it")
                    raise Preempted(signum, done)
            if evaluations.exhausted():
                report.gave_up(done, patience, evaluations.best)
            if best_metric is None and weights() is not state.params:
                checkpoints.save_best(done, weights(), {"best": None})  # for `load_params`
            checkpoints.wait()
            return result(done)
