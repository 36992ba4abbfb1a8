"""The loop: `sft(config)` yields each step's metrics; `python -m jaxgrpo.sft --config FILE`.

problems with solutions -> examples -> packed batches -> update -> metrics, checkpoint
"""

import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np

from jaxgrpo import config as configs
from jaxgrpo import evaluate as sampled
from jaxgrpo import metrics, performance, plots, trackers
from jaxgrpo.checkpoint import Checkpoints
from jaxgrpo.config import SFTConfig, parse_sft_command_line
from jaxgrpo.console import SFT_COLUMNS
from jaxgrpo.data.order import ProblemOrder, ProblemStream
from jaxgrpo.distributed.mesh import to_device
from jaxgrpo.distributed.processes import (
    gather_json,
    join_processes,
    print0,
    print_nothing,
)
from jaxgrpo.errors import UserError
from jaxgrpo.files import run_folder, write_json
from jaxgrpo.losses import Supervised
from jaxgrpo.program_specs import learning_rates
from jaxgrpo.rollout.report import Json
from jaxgrpo.run_state import check_start, first_state, write_config
from jaxgrpo.sft import evaluation
from jaxgrpo.sft.build import SFTRun, build
from jaxgrpo.sft.overview import overview
from jaxgrpo.sft.packing import count_examples
from jaxgrpo.signals import noted_signals
from jaxgrpo.summary import (
    headline,
    is_finished,
    make_once,
    summarise,
    tables,
)
from jaxgrpo.types import Params, TrainBatch, TrainState

Metrics = dict[str, float]

UPDATE_METRICS = ("update/loss", "update/grad_norm", "update/tokens", "policy/entropy")
"""What is kept of an update's metrics; the others compare the policy with a sampler."""


@dataclass
class SFTState:
    """The state of supervised training after a whole number of steps: what a checkpoint holds.

    started_at: when the run would have started (time.time) if it had never been interrupted
    """

    step: int
    state: TrainState
    order: ProblemOrder
    started_at: float

    def to_json(self) -> Json:
        """Returns everything but the train state, as JSON values."""
        return {
            "step": self.step,
            "order": self.order.state(),
            "seconds": time.time() - self.started_at,
        }


def sft(
    config: SFTConfig, stop: Callable[[], bool] = lambda: False
) -> Iterator[Metrics]:
    """Fine-tunes, and yields the metrics of each step as they are written to OUT/metrics.jsonl.

    It goes on from the newest checkpoint in config.out. Before the first step, after the last and,
    if asked to, every few steps it evaluates on held-out problems; OUT/summary.json then says what
    training did. What it leaves `export`, `sample`, `evaluate` and `init_from` read.

    stop: asked before each step; at the first yes, and when the caller stops iterating, the steps
        so far are saved

    Raises UserError for bad input, before any device time is spent.
    """
    join_processes(**vars(config.distributed))
    say = partial(print_nothing if config.quiet else print0, flush=True)
    configs.validate_sft(config)
    resume_notes = configs.check_same(config, config.out)
    if config.rewards:
        sampled.check(config.to_config())
    check_start(config.to_config())
    trackers.check(config.trackers)
    started_at = time.time()
    out = run_folder(config.out, again=True)
    with (
        build(config) as sft_run,
        Checkpoints(
            config.out, config.keep_checkpoints, config.evaluation.keep_best
        ) as checkpoints,
    ):
        run = sft_run.run
        steps = run.config.steps
        if is_finished(run.config):
            return

        # 1. Prepare: parameters, the newest checkpoint.
        write_config(config)
        say(overview(sft_run))
        for note in [*resume_notes, *run.notes]:
            say(note)
        params = run.load_params()
        # Adapters stand beside the frozen model. Without them there is nothing but the state.
        reference = run.programs.make_reference(params) if config.lora.rank else None
        state = _restore_or_start(sft_run, checkpoints, params, started_at)
        if config.rewards and sft_run.heldout:
            run.engine.warm_up(run.policy(reference, state.state.params))
        if state.step:
            say(f"going on from step {state.step} of {steps} in {config.out}")

        # 2. Evaluate, train, evaluate again.
        evaluate_start = partial(_evaluate_start, sft_run, state, reference, params)
        before = make_once(out / "before.json", evaluate_start)
        del params, evaluate_start
        if before:
            say(f"\n{evaluation.loss_table(before)}\n")
        yield from _run_steps(sft_run, state, reference, checkpoints, stop)
        if state.step < steps:
            say(
                f"stopped after step {state.step} of {steps}, which is saved in "
                f"{config.out}: the same command goes on"
            )
            return
        after = _evaluate_last(sft_run, state, reference)

    # 3. Say what training did.
    seconds = time.time() - state.started_at
    losses = {"loss_before": before.get("loss"), "loss_after": after.get("loss")}
    summary = summarise(before, after, steps=state.step, seconds=seconds, **losses)
    if jax.process_index() == 0:
        write_json(out / "summary.json", summary)
        plots.plot(out, plots.SFT_PANELS)
    if after:
        say(f"\n{evaluation.loss_table(before, after)}\n")
    if config.rewards and after:
        say(f"{tables(before, after)}\n")
    text = headline(summary)
    if after:
        text += f", held-out loss {before['loss']:.3f} -> {after['loss']:.3f}"
    say(f"{text} in {seconds:.0f} s; see {config.out}")
    gather_json(None)  # none of several processes ends before the first has written


def _restore_or_start(
    sft_run: SFTRun, checkpoints: Checkpoints, params: Params, started_at: float
) -> SFTState:
    """Returns the newest checkpoint's state; without one, the state that a run begins with."""
    run = sft_run.run
    order = ProblemOrder(run.task.problems, run.config.seed)
    if checkpoints.latest() is None:
        return SFTState(0, first_state(run, params), order, started_at)
    state, saved = checkpoints.restore(run.programs.state_like)
    order.restore(saved["order"])
    return SFTState(saved["step"], state, order, started_at - saved["seconds"])


def _run_steps(
    sft_run: SFTRun,
    state: SFTState,
    reference: Params | None,
    checkpoints: Checkpoints,
    stop: Callable[[], bool],
) -> Iterator[Metrics]:
    """Takes steps up to the last one, or until told to stop.

    `state` moves on, metrics are written, checkpoints saved.
    """
    config = sft_run.config
    steps = sft_run.run.config.steps
    num_problems = len(sft_run.run.task.problems)
    first_step = state.step + 1
    stream = ProblemStream(state.order, sft_run.make_example.accepts)
    batches = sft_run.batches(stream)
    writer = metrics.Writer(
        config.out,
        state.step + 1,
        steps,
        jax.process_index() == 0,
        config.trackers,
        configs.flat(configs.describe(config)),
        config.quiet,
        SFT_COLUMNS,
    )
    with writer:
        scores: Metrics = {}  # of the last step, where it was evaluated

        def save() -> None:
            writer.flush()
            checkpoints.save(state.step, state.state, state.to_json(), scores)

        def next_batch() -> TrainBatch | None:
            return next(batches) if state.step < steps else None

        batch = next_batch()
        # All processes must leave at the same step, whichever of them was told.
        while batch is not None and not any(gather_json(stop())):
            learned = count_examples(batch)
            step_metrics, batch = _run_step(
                sft_run, state, reference, batch, next_batch
            )
            stream.mark_used(learned)
            step_metrics["data/epoch"] = state.order.position / num_problems
            if state.step == first_step:
                # The first step of this process has compiled all that there is to compile.
                program = sft_run.run.programs.update
                step_metrics |= sft_run.run.programs.memory(program, reference)
                writer.print_line(metrics.memory_line(step_metrics))
                program.seal()
            step_metrics |= evaluation.after_step(
                sft_run, state.state, reference, state.step
            )
            scores = sampled.scores_of(step_metrics)
            writer.write(state.step, step_metrics)
            may_be_best = bool(scores and config.evaluation.keep_best)
            if may_be_best or state.step % config.save_every == 0:
                save()
            try:
                yield {"step": state.step} | step_metrics
            except GeneratorExit:
                save()
                raise
        save()


def _run_step(
    sft_run: SFTRun,
    state: SFTState,
    reference: Params | None,
    batch: TrainBatch,
    next_batch: Callable[[], TrainBatch | None],
) -> tuple[Metrics, TrainBatch | None]:
    """Makes one update, and packs the next batch meanwhile; returns the metrics, and that batch.

    Raises UserError if the loss is not finite.
    """
    config = sft_run.run.config
    programs = sft_run.run.programs
    started_at = time.perf_counter()
    rate = float(learning_rates(config)(state.step))
    placed = to_device(batch, programs.row_sharding)
    state.state, on_device = programs.update(
        state.state, reference, placed, Supervised(), 1.0
    )
    state.step += 1
    # Nothing has waited for the devices yet: they learn while the host packs.
    following = next_batch()
    update_metrics = {name: float(on_device[name]) for name in UPDATE_METRICS}
    _check_loss(state.step, update_metrics["update/loss"], sft_run)
    seconds = time.perf_counter() - started_at
    return (
        update_metrics
        | metrics.peak_memory()
        | performance.learning_metrics(sft_run.run, batch, seconds)
        | {
            "optimizer/learning_rate": rate,
            "data/examples": float(count_examples(batch)),
            "data/packed": float(np.mean(batch.segments > 0)),
            "time/step": seconds,
        },
        following,
    )


def _check_loss(step: int, loss: float, sft_run: SFTRun) -> None:
    """Raises UserError if the loss of a step is not finite."""
    if math.isfinite(loss):
        return
    raise UserError(
        f"the loss of step {step} is {loss}: the run is stopped, and the step is not saved; lower "
        f"optimizer.learning_rate, or check that the weights of {sft_run.run.model_folder} are "
        "finite"
    )


def _evaluate_start(
    sft_run: SFTRun, state: SFTState, reference: Params | None, params: Params
) -> Json:
    """Returns the evaluation of what the run begins with.

    params: the model folder's
    """
    begun = state.state if state.step == 0 else first_state(sft_run.run, params)
    return evaluation.evaluate(sft_run, begun, reference)


def _evaluate_last(sft_run: SFTRun, state: SFTState, reference: Params | None) -> Json:
    """Returns the evaluation after the last step, which may have been made already."""
    make = partial(evaluation.evaluate, sft_run, state.state, reference)
    config = sft_run.run.config
    if not sampled.is_due(config, state.step):
        return make()
    return make_once(sampled.step_path(config.out, state.step), make)


def main(argv: list[str]) -> None:
    """Fine-tunes as the command line says. Ctrl-C and SIGTERM save the last whole step."""
    config = parse_sft_command_line(argv)
    with noted_signals() as signals:
        for _ in sft(config, stop=lambda: bool(signals)):
            pass
    if signals:
        sys.exit(128 + signals[0])
