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
from pathlib import Path

import jax

from jaxgrpo import config as configs
from jaxgrpo import evaluate, losses, metrics, performance, plots, trackers
from jaxgrpo.build import Run, build_run, model_folder, trained_rows, update_rule
from jaxgrpo.checkpoint import Checkpoints
from jaxgrpo.config import GAPS, Config, parse_command_line
from jaxgrpo.config.command_line import run_main
from jaxgrpo.config.sizes import max_prompts, sampler_precision
from jaxgrpo.data.order import ProblemStream
from jaxgrpo.distributed.processes import gather_json, join_processes, print0
from jaxgrpo.errors import UserError
from jaxgrpo.files import write_json
from jaxgrpo.models import lora
from jaxgrpo.plan.inputs import learning_inputs
from jaxgrpo.problems import Weighted
from jaxgrpo.rollout.batch import make_batch
from jaxgrpo.rollout.collect import Collection, CollectSpec, collect_groups
from jaxgrpo.rollout.difficulty import DifficultyFilter
from jaxgrpo.rollout.groups import JudgedGroup, SamplingRequest
from jaxgrpo.rollout.report import (
    MissingVerdictsError,
    check_missing_verdicts,
    verdict_means,
)
from jaxgrpo.rollout.stream import RolloutStream
from jaxgrpo.rollout_records import step_records
from jaxgrpo.run_state import RunState, restore_or_start
from jaxgrpo.signals import noted_signals
from jaxgrpo.summary import (
    Report,
    check_shared,
    headline,
    is_finished,
    make_once,
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
    evaluates on held-out problems; OUT/summary.json then says what training did.

    stop: asked before each step; at the first yes, and when the caller stops iterating, the steps
        so far are saved

    Raises UserError for bad input, before any device time is spent.
    """
    join_processes(**vars(config.distributed))
    configs.check_same(config, config.out)
    trackers.check(config.trackers)
    started_at = time.time()
    out = Path(config.out)
    if is_finished(config):
        return
    with (
        build_run(config) as run,
        Checkpoints(config.out, config.keep_checkpoints) as checkpoints,
    ):
        # 1. Prepare: parameters, the newest checkpoint, compiled programs.
        if jax.process_index() == 0:
            configs.save(config, config.out)
        check_shared(out)
        for note in run.notes:
            print0(note)
        params = run.load_params()
        run_state = restore_or_start(run, checkpoints, params, started_at)
        if run_state.step < config.steps:
            compile_update(run, run_state)
        reference = run.programs.make_reference(params)
        del params
        run.engine.warm_up(run.policy(reference, run_state.state.params))
        if run_state.step:
            print0(f"going on from step {run_state.step} of {config.steps} in {out}")

        # 2. Evaluate, train, evaluate again.
        untrained = reference
        if config.lora.rank:
            # The programs are compiled for a policy with adapters, so the base is asked through
            # adapters of zeros.
            untrained = lora.attach(
                reference, lora.zero_adapters(run_state.state.params)
            )
        before = make_once(out / "before.json", partial(_evaluate, run, untrained))
        if before:
            print0(f"\n{tables(before)}\n", flush=True)
        if config.reference:
            # The model's own copy makes room first.
            del untrained, reference
            reference = run.load_reference()
        yield from run_steps(run, run_state, reference, checkpoints, stop)
        if run_state.step < config.steps:
            print0(
                f"stopped after step {run_state.step} of {config.steps}, which is saved in {out}: "
                "the same command goes on"
            )
            return
        after = _evaluate(run, run.policy(reference, run_state.state.params))

    # 3. Say what training did.
    seconds = time.time() - run_state.started_at
    summary = summarise(before, after, steps=run_state.step, seconds=seconds)
    if jax.process_index() == 0:
        write_json(out / "summary.json", summary)
        plots.plot(out)
    if after:
        print0(f"\n{tables(before, after)}\n")
    print0(f"{headline(summary)} in {seconds:.0f} s; see {out}")
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
    )
    stream = RolloutStream(
        run.engine,
        run.judge,
        ProblemStream(run_state.order, run.prompt_filter.accepts),
        request,
        config.sampling.keep_in_flight,
        config.sampling.max_age,
    )
    is_first = jax.process_index() == 0
    writer = metrics.Writer(
        config.out,
        run_state.step + 1,
        config.steps,
        is_first,
        config.trackers,
        configs.flat(configs.describe(config)),
    )
    with writer, contextlib.closing(stream):

        def save() -> None:
            writer.flush()
            checkpoints.save(run_state.step, run_state.state, run_state.to_json())

        # All processes must leave at the same step, whichever of them was told.
        while run_state.step < config.steps and not any(gather_json(stop())):
            position = run_state.order.position
            try:
                step_metrics = run_step(run, run_state, stream, reference, writer)
            except MissingVerdictsError:
                run_state.order.seek(position)  # the step will be taken again
                save()
                raise
            writer.write(run_state.step, step_metrics)
            if run_state.step % config.save_every == 0:
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
    spec = CollectSpec(
        groups=config.batch.groups,
        max_prompts=max_prompts(config),
        filter=DifficultyFilter(
            config.filter.rule, config.filter.low, config.filter.high
        ),
        trained_rows=trained_rows(config),
    )
    policy = run.policy(reference, run_state.state.params)
    collected = collect_groups(stream, policy, spec, step, run_state.reward_weights)
    check_missing_verdicts(
        collected.asked, config.verifier.max_missing, Path(config.out) / "missing.jsonl"
    )
    weight_metrics = _move_reward_weights(run, run_state, collected.asked)
    for group in collected.asked:
        run_state.history.record(group.problem.id, group.solved, group.judged)
    if config.show_rollouts_every and (step - 1) % config.show_rollouts_every == 0:
        writer.write_rollouts(
            step, step_records(collected, run_state.objective, config.save_rollouts)
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


def _move_reward_weights(
    run: Run, run_state: RunState, asked: list[JudgedGroup]
) -> Metrics:
    """Moves the reward weights on to the next step's; returns this step's that can move."""
    step = run_state.step + 1
    weights = run_state.reward_weights
    means = verdict_means(asked)
    moving = {
        f"weight/{name}": weights[name]
        for name, reward in run.config.rewards.items()
        if type(reward) is not Weighted
    }
    run_state.reward_weights = {
        name: reward.next_weight(step + 1, weights[name], means.get(name, math.nan))
        for name, reward in run.config.rewards.items()
    }
    return moving


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
