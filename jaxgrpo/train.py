"""The loop: `train(config)` yields each step's metrics; `python -m jaxgrpo.train --config FILE`.

data -> prompts -> rollouts -> rewards -> filter -> batch -> update -> metrics, checkpoint
"""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax

from jaxgrpo import config as configs
from jaxgrpo import evaluate, losses, metrics, performance, plots, trackers
from jaxgrpo.build import Run, build_run, model_folder, update_rule
from jaxgrpo.checkpoint import Checkpoints
from jaxgrpo.config import GAPS, Config, parse_command_line
from jaxgrpo.config.command_line import run_main
from jaxgrpo.config.sizes import sampler_precision
from jaxgrpo.data.order import ProblemStream
from jaxgrpo.distributed.processes import (
    gather_json,
    join_processes,
    print0,
    print_nothing,
)
from jaxgrpo.errors import UserError
from jaxgrpo.files import run_folder, write_json
from jaxgrpo.overview import overview
from jaxgrpo.plan.inputs import learning_inputs
from jaxgrpo.rollout.batch import make_batch
from jaxgrpo.rollout.collect import Collection, collect_groups
from jaxgrpo.rollout.groups import SamplingRequest
from jaxgrpo.rollout.report import (
    MissingVerdictsError,
    check_missing_verdicts,
)
from jaxgrpo.rollout.stream import RolloutStream
from jaxgrpo.rollout_records import step_records
from jaxgrpo.run_state import (
    RunState,
    begin_step,
    check_start,
    move_reward_weights,
    note_groups,
    restore_or_start,
    start_policy,
    write_config,
)
from jaxgrpo.selection import trained_rows
from jaxgrpo.signals import noted_signals
from jaxgrpo.summary import (
    Report,
    headline,
    is_finished,
    make_once,
    score_line,
    summarise,
    tables,
)
from jaxgrpo.types import Params, SamplingParams
from jaxgrpo.updates import merge_metrics, update_policy, update_program

Metrics = dict[str, float]


def train(
    config: Config, stop: Callable[[], bool] = lambda: False
) -> Iterator[Metrics]:
    """Trains, and yields the metrics of each step as they are written to OUT/metrics.jsonl.

    It goes on from the newest checkpoint in config.out. Before the first step and after the last it
    evaluates on held-out problems, and every few steps if asked to; OUT/summary.json then says what
    training did.

    stop: asked before each step; at the first yes, and when the caller stops iterating, the steps
        so far are saved

    Raises UserError for bad input, before any device time is spent.
    """
    join_processes(**vars(config.distributed))
    say = print_nothing if config.quiet else print0
    resume_notes = configs.check_same(config, config.out)
    evaluate.check(config)
    check_start(config)
    trackers.check(config.trackers)
    started_at = time.time()
    out = run_folder(config.out, again=True)
    if is_finished(config):
        return
    with (
        build_run(config) as run,
        Checkpoints(
            config.out, config.keep_checkpoints, config.evaluation.keep_best
        ) as checkpoints,
    ):
        # 1. Prepare: parameters, the newest checkpoint, compiled programs.
        write_config(config)
        say(overview(run))
        for note in [*resume_notes, *run.notes]:
            say(note)
        params = run.load_params()
        run_state = restore_or_start(run, checkpoints, params, started_at)
        if run_state.step < config.steps:
            compile_update(run, run_state)
        reference = run.programs.make_reference(params)
        del params
        say("compiling ...", flush=True)
        run.engine.warm_up(run.policy(reference, run_state.state.params))
        if step := run_state.step:
            say(f"going on from step {step} of {config.steps} in {config.out}")

        # 2. Evaluate, train, evaluate again.
        evaluate_start = partial(_evaluate_start, run, run_state, reference)
        before = make_once(out / "before.json", evaluate_start)
        if before:
            say(f"\n{tables(before)}\n", flush=True)
        if config.reference:
            # The model's own copy makes room first.
            del evaluate_start, reference
            reference = run.load_reference()
        if run_state.step < config.steps:
            say("the first step waits for what is still compiling ...", flush=True)
        yield from run_steps(run, run_state, reference, checkpoints, stop)
        if run_state.step < config.steps:
            say(
                f"stopped after step {run_state.step} of {config.steps}, which is saved in "
                f"{config.out}: the same command goes on"
            )
            return
        after = _evaluate_last(run, run_state, reference)

    # 3. Say what training did.
    seconds = time.time() - run_state.started_at
    summary = summarise(before, after, steps=run_state.step, seconds=seconds)
    if jax.process_index() == 0:
        write_json(out / "summary.json", summary)
        plots.plot(out)
    if after:
        say(f"\n{tables(before, after)}\n")
    say(f"{headline(summary)} in {seconds:.0f} s; see {config.out}")
    gather_json(None)  # none of several processes ends before the first has written


def compile_update(run: Run, run_state: RunState) -> None:
    """Begins to compile the update's programs in a thread, beside sampling and the evaluation."""
    _, calls = learning_inputs(run.config, run.programs, run_state.objective)
    executor = ThreadPoolExecutor(max_workers=1)
    for call in calls.values():
        call.program.compile_ahead(executor, *call.arguments)
    executor.shutdown(wait=False)


def run_steps(
    run: Run,
    run_state: RunState,
    reference: Params,
    checkpoints: Checkpoints,
    stop: Callable[[], bool],
) -> Iterator[Metrics]:
    """Takes steps up to the last one, or until told to stop.

    `run_state` moves on, metrics are written, checkpoints saved.
    """
    config = run.config
    request = SamplingRequest(
        group_size=config.batch.group_size,
        sampling=SamplingParams(config.sampling.temperature),
        purpose="training",
        stop=config.sampling.stop,
        screened=config.filter.early_verdicts,
    )
    stream = RolloutStream(
        run.engine,
        run.judge,
        ProblemStream(run_state.order, run.prompt_filter.accepts),
        request,
        config.sampling.keep_in_flight,
        config.sampling.max_age,
        in_launch_order=config.filter.select != "finish",
    )
    is_first = jax.process_index() == 0
    writer = metrics.Writer(
        config.out,
        run_state.step + 1,
        config.steps,
        is_first,
        config.trackers,
        configs.flat(configs.describe(config)),
        config.quiet,
    )
    with writer, contextlib.closing(stream):
        scores: Metrics = {}  # of the last step, where it was evaluated

        def save() -> None:
            writer.flush()
            checkpoints.save(
                run_state.step, run_state.state, run_state.to_json(), scores
            )

        # All processes must leave at the same step, whichever of them was told.
        while run_state.step < config.steps and not any(gather_json(stop())):
            position = run_state.order.position
            try:
                step_metrics = run_step(run, run_state, stream, reference, writer)
            except MissingVerdictsError:
                run_state.order.seek(position)  # the step will be taken again
                save()
                raise
            policy = run.policy(reference, run_state.state.params)
            step_metrics |= evaluate.after_step(run, policy, run_state.step)
            scores = evaluate.scores_of(step_metrics)
            writer.write(run_state.step, step_metrics)
            if scores:
                writer.print_line(score_line(run_state.step, scores))
            may_be_best = bool(scores and config.evaluation.keep_best)
            if may_be_best or run_state.step % config.save_every == 0:
                save()
            try:
                yield {"step": run_state.step} | step_metrics
            except GeneratorExit:
                save()
                raise
        save()


def run_step(
    run: Run,
    run_state: RunState,
    stream: RolloutStream,
    reference: Params,
    writer: metrics.Writer,
) -> Metrics:
    """Takes one step: collects groups, updates on them.

    It waits for the update: the next step's first act needs it anyway, and the times are then true.
    """
    config = run.config
    step = run_state.step + 1
    started_at = time.perf_counter()

    # 1. Rollouts, rewards and the difficulty filter.
    spec = begin_step(run, run_state)
    policy = run.policy(reference, run_state.state.params)
    collected = collect_groups(stream, policy, spec, step, run_state.reward_weights)
    check_missing_verdicts(
        collected.asked,
        config.verifier.max_missing,
        run_folder(config.out) / "missing.jsonl",
    )
    weight_metrics = move_reward_weights(run, run_state, collected.asked)
    note_groups(run, run_state, collected)
    if config.show_rollouts_every and (step - 1) % config.show_rollouts_every == 0:
        writer.write_rollouts(
            step,
            step_records(
                collected,
                run_state.objective,
                config.save_rollouts,
                spec.trained_rows,
            ),
        )

    # 2. The update.
    update_started_at = time.perf_counter()
    update_metrics = _update(run, run_state, reference, collected, writer)
    run_state.step = step
    now = time.perf_counter()
    step_seconds = now - started_at
    return (
        collected.metrics
        | weight_metrics
        | update_metrics
        | metrics.peak_memory()
        | performance.step_metrics(run, collected, update_metrics, step_seconds)
        | {
            "time/update": now - update_started_at,
            "time/step": step_seconds,
            "data/epoch": float(run_state.order.epoch),
            "data/problems_seen": float(len(run_state.history.visits)),
        }
    )


def _update(
    run: Run,
    run_state: RunState,
    reference: Params,
    collected: Collection,
    writer: metrics.Writer,
) -> Metrics:
    """Updates the policy on the groups of a step, if there are any; returns the metrics."""
    config = run.config
    programs = run.programs
    state = run_state.state
    if not collected.groups:
        run_state.state = state._replace(step=state.step + 1)
        run_state.objective = losses.after_step(run_state.objective, {})
        return {}
    batch = make_batch(
        collected.groups,
        config.batch.groups,
        trained_rows(config),
        run_state.step + 1,
    )
    rule = update_rule(config, programs)
    run_state.state, updates = update_policy(
        programs,
        state,
        reference,
        batch,
        run_state.objective,
        config.sampling.temperature,
        rule,
        run_state.step + 1,
    )
    update_metrics = updates[0] if rule.is_single else merge_metrics(updates)
    moving = losses.moving_values(run_state.objective)
    run_state.objective = losses.after_step(run_state.objective, update_metrics)
    # This step's coefficients, not the next one's.
    update_metrics |= {f"objective/{name}": value for name, value in moving.items()}
    program = update_program(programs, rule)
    counted = [update for update in updates if update["update/tokens"]]
    if counted and not program.sealed:
        # The first update of this process that has a token to compare.
        check_agreement(config, counted[0])
        update_metrics |= programs.memory(program, reference)
        writer.print_line(metrics.memory_line(update_metrics))
        program.seal()
    return update_metrics


def check_agreement(config: Config, update_metrics: Mapping[str, float]) -> None:
    """Raises UserError if the sampler's log-probabilities are not those of the scorer.

    For the same policy they must agree, and be finite. Else what is trained is not what was
    sampled, and nothing that follows can be trusted.
    """
    gap = update_metrics["policy/logprob_gap_p99"]
    if not math.isfinite(gap):
        raise UserError(
            "some of the sampler's or the scorer's log-probabilities are NaN or infinite, so that "
            "they cannot be compared: the run is stopped, and the step is not saved; the weights "
            f"of {model_folder(config.model)}, or what they make of a prompt in {config.dtype}, "
            "are not finite: check the files, or take another model"
        )
    precision = sampler_precision(config)
    max_gap = config.sampling.max_logprob_gap or GAPS[precision]
    if gap > max_gap:
        raise UserError(
            f"the sampler's log-probabilities differ from the scorer's by {gap:.2g} nats in one "
            f"token of a hundred, and in {precision} they should by at most {max_gap:g}: the "
            "run is stopped; if you know why, raise sampling.max_logprob_gap"
        )


def _evaluate(run: Run, params: Params) -> Report:
    return evaluate.evaluate(run, params) if run.config.evaluation.problems else {}


def _evaluate_last(run: Run, run_state: RunState, reference: Params) -> Report:
    """Returns the evaluation after the last step, which may have been made already."""
    make = partial(_evaluate, run, run.policy(reference, run_state.state.params))
    if not evaluate.is_due(run.config, run_state.step):
        return make()
    return make_once(evaluate.step_path(run.config.out, run_state.step), make)


def _evaluate_start(run: Run, run_state: RunState, reference: Params) -> Report:
    if run.config.evaluation.problems and not run.config.quiet:
        print0("evaluating what the run begins with ...", flush=True)
    return _evaluate(run, start_policy(run, run_state, reference))


def main(argv: list[str]) -> None:
    """Trains as the command line says. Ctrl-C and SIGTERM save the last whole step."""
    config = parse_command_line(argv)
    with noted_signals() as signals:
        for _ in train(config, stop=lambda: bool(signals)):
            pass
    if signals:
        sys.exit(128 + signals[0])


if __name__ == "__main__":
    run_main(main)
