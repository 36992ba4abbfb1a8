"""The loop: `train(config)` yields each step's metrics; `python -m jaxgrpo.train --config FILE --config.name=value ...`.

data -> prompts -> rollouts -> rewards -> difficulty filter -> batch -> update -> metrics, checkpoint
"""

import contextlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxgrpo import config as settings
from jaxgrpo import console, evaluate, metrics, plots
from jaxgrpo.build import Run, build_run, model_folder
from jaxgrpo.checkpoint import Checkpoints
from jaxgrpo.config import Config, parse_command_line
from jaxgrpo.config.command_line import run_main
from jaxgrpo.data.order import ProblemOrder, ProblemStream
from jaxgrpo.distributed.mesh import to_device
from jaxgrpo.distributed.processes import gather_json, join_processes, print0
from jaxgrpo.errors import UserError
from jaxgrpo.files import write_json
from jaxgrpo.models import lora
from jaxgrpo.problems import Weighted
from jaxgrpo.rollout.collect import (
    CollectSpec,
    MissingVerdictsError,
    RolloutStream,
    check_missing_verdicts,
    collect_groups,
    make_batch,
    record,
    verdict_means,
)
from jaxgrpo.rollout.difficulty import History
from jaxgrpo.rollout.engine import Draw, Group
from jaxgrpo.types import Params, TrainState


@dataclass
class RunState:
    """Where a run is, after a whole number of steps; what a checkpoint holds.

    weights: the rewards', at the next step
    begun: when it would have begun (time.time) if it had never been interrupted
    """

    step: int
    state: TrainState
    order: ProblemOrder
    history: History
    weights: dict[str, float]
    begun: float

    def host(self) -> dict[str, Any]:
        """All but the state, as JSON values."""
        spent = time.time() - self.begun
        order, history = self.order.state(), self.history.state()
        return {
            "step": self.step,
            "order": order,
            "history": history,
            "weights": self.weights,
            "seconds": spent,
        }


def train(config: Config, stop: Callable[[], bool] = lambda: False) -> Iterator[dict[str, float]]:
    """Trains, and yields the metrics of each step as they are written to OUT/metrics.jsonl.

    Goes on from the newest checkpoint in config.out. Before the first step and after the last it evaluates on held-out
    problems; OUT/summary.json then says what training did. UserError for bad input, before any device time is spent.

    stop: asked before each step; at the first yes, and when the caller stops iterating, the steps so far are saved.
    """
    join_processes(**vars(config.distributed))
    settings.check_same(config, config.out)
    started, out = time.time(), Path(config.out)
    if _finished(config):
        return
    with build_run(config) as run, Checkpoints(config.out, config.keep_checkpoints) as checkpoints:
        if jax.process_index() == 0:
            settings.save(config, config.out)
        check_shared(out)
        for note in run.notes:
            print0(note)
        params = run.load_params()
        place, reference = (
            restore_or_start(run, checkpoints, params, started),
            run.steps.refer(params),
        )
        del params
        run.engine.warm_up(lora.attach(reference, place.state.params))
        if place.step:
            print0(f"going on from step {place.step} of {config.steps} in {out}")
        # With LoRA the programs are compiled for a policy with adapters, so the base is asked through adapters of zeros.
        untrained = lora.zero_adapters(place.state.params) if config.lora.rank else {}
        before = once(
            out / "before.json", partial(_evaluate, run, lora.attach(reference, untrained))
        )
        if before:
            print0(f"\n{evaluate.tables(before)}\n", flush=True)
        yield from run_steps(run, place, reference, checkpoints, stop)
        if place.step < config.steps:
            print0(
                f"stopped after step {place.step} of {config.steps}, which is saved in {out}: the same command goes on"
            )
            return
        after = _evaluate(run, lora.attach(reference, place.state.params))
    summary = summarise(before, after, steps=place.step, seconds=time.time() - place.begun)
    if jax.process_index() == 0:
        write_json(out / "summary.json", summary)
        plots.plot(out)
    if after:
        print0(f"\n{evaluate.tables(before, after)}\n")
    print0(f"{headline(summary)} in {summary['seconds']:.0f} s; see {out}")
    gather_json(None)  # none of several processes ends before the first has written


def restore_or_start(
    run: Run, checkpoints: Checkpoints, params: Params, started: float
) -> RunState:
    """Where the newest checkpoint is; without one, the beginning, with these parameters."""
    order = ProblemOrder(run.task.problems, run.config.seed)
    if checkpoints.latest() is None:
        state = run.steps.init(params, np.uint32(run.config.seed))
        return RunState(0, state, order, History(), dict(run.judge.weights), started)
    state, host = checkpoints.restore(run.steps.state_like)
    order.restore(host["order"])
    history = History.restore(host["history"])
    return RunState(host["step"], state, order, history, host["weights"], started - host["seconds"])


def run_steps(
    run: Run, place: RunState, reference: Params, checkpoints: Checkpoints, stop: Callable[[], bool]
) -> Iterator[dict[str, float]]:
    """Steps up to the last one, or until told to stop: `place` moves on, numbers are written, checkpoints saved."""
    config, is_first = run.config, jax.process_index() == 0
    draw = Draw(config.sampling.temperature, stop=config.sampling.stop)
    problems = ProblemStream(place.order, run.fitting.fits)
    keep, max_age = config.sampling.keep_in_flight, config.sampling.max_age
    stream = RolloutStream(run.engine, run.judge, problems, draw, keep, max_age)
    writing = metrics.Writer(config.out, place.step + 1, config.steps, active=is_first)
    with writing as writer, contextlib.closing(stream):

        def save() -> None:
            writer.flush()
            checkpoints.save(place.step, place.state, place.host())

        # All processes must leave at the same step, whichever of them was told.
        while place.step < config.steps and not any(gather_json(stop())):
            position = place.order.position
            try:
                values = run_step(run, place, stream, reference, writer)
            except MissingVerdictsError:
                place.order.seek(position)  # the step will be taken again
                save()
                raise
            writer.write(place.step, values)
            if place.step % config.save_every == 0:
                save()
            try:
                yield {"step": place.step} | values
            except GeneratorExit:
                save()
                raise
        save()


def run_step(
    run: Run, place: RunState, stream: RolloutStream, reference: Params, writer: metrics.Writer
) -> dict[str, float]:
    """One step: collect groups, update on them. Waits for the update: the next step's first act needs it anyway, and the
    times are then true."""
    config, step, started = run.config, place.step + 1, time.perf_counter()
    b, f = config.batch, config.filter
    most = b.groups if f.rule == "off" else int(f.max_prompts * b.groups)
    wanted = CollectSpec(b.groups, b.group_size, f.rule, f.low, f.high, most, b.mask_truncated)
    run.judge.weights.update(place.weights)
    groups, figures, asked = collect_groups(
        stream, lora.attach(reference, place.state.params), wanted, step
    )
    check_missing_verdicts(asked, config.verifier.max_missing, Path(config.out) / "missing.jsonl")
    means = verdict_means(asked)
    for name, reward in config.rewards.items():
        place.weights[name] = reward.next_weight(
            step + 1, place.weights[name], means.get(name, np.nan)
        )
        if type(reward) is not Weighted:
            figures[f"weight/{name}"] = run.judge.weights[name]
    for group in asked:
        place.history.record(group.problem.id, group.solved, group.judged)
    if config.show_rollouts_every and (step - 1) % config.show_rollouts_every == 0:
        writer.write_rollouts(step, records(asked, groups))
    updating = time.perf_counter()
    if groups:
        batch = to_device(make_batch(groups, b.groups, b.mask_truncated), run.steps.rows)
        place.state, learned = run.steps.update(
            place.state, reference, batch, config.objective, config.sampling.temperature
        )
    else:
        place.state, learned = place.state._replace(step=place.state.step + 1), {}
    numbers = {name: float(value) for name, value in jax.device_get(learned).items()}
    if learned and not run.steps.update.sealed:  # the first step of this process
        check_agreement(config, numbers)
        numbers |= run.steps.memory(reference, batch, config.objective, config.sampling.temperature)
        writer.print_line(memory_line(numbers))
        run.steps.update.seal()
    numbers |= peak_memory()
    place.step = step
    now = time.perf_counter()
    times = {"time/update": now - updating, "time/step": now - started}
    visited = {
        "data/epoch": float(place.order.epoch),
        "data/problems_seen": float(len(place.history.visits)),
    }
    return figures | numbers | times | visited


def check_agreement(config: Config, numbers: dict[str, float]) -> None:
    """Raises UserError if the sampler's log-probabilities are not those that the scorer finds for
    the same policy, or any of them is not finite: then what is trained is not what was sampled, and
    nothing that follows can be trusted."""
    gap = numbers["policy/logprob_gap_p99"]
    if not math.isfinite(gap):
        raise UserError(
            "some of the sampler's or the scorer's log-probabilities are NaN or infinite, so that "
            "they cannot be compared: the run is stopped, and the step is not saved; the weights of "
            f"{model_folder(config.model)}, or what they make of a prompt in {config.dtype}, are "
            "not finite: check the files, or take another model"
        )
    most = config.sampling.max_logprob_gap or settings.GAPS[config.dtype]
    if gap > most:
        raise UserError(
            f"the sampler's log-probabilities differ from the scorer's by {gap:.2g} nats in one token of a hundred, and in "
            f"{config.dtype} they should by at most {most:g}: the run is stopped; if you know why, raise "
            "sampling.max_logprob_gap"
        )


def peak_memory() -> dict[str, float]:
    """{"memory/peak": the most bytes that a device of this process has held}; {} where nobody knows, as of a CPU."""
    known = [
        stats["peak_bytes_in_use"]
        for device in jax.local_devices()
        if (stats := device.memory_stats())
    ]
    return {"memory/peak": float(max(known))} if known else {}


def memory_line(numbers: dict[str, float]) -> str:
    """`memory a device: parameters 1.2 GB, optimizer 2.4 GB, reference 0.6 GB, temporaries 3.1 GB`."""
    parts = [name for name in numbers if name.startswith("memory/")]
    words = [f"{name.removeprefix('memory/')} {console.format_bytes(numbers[name])}" for name in parts]
    return f"memory a device: {', '.join(words)}"


def records(asked: list[Group], kept: list[Group], most: int = 4) -> Iterator[dict[str, Any]]:
    """The first completion of the first few groups of a step, as JSON values."""
    for group in asked[:most]:
        yield record(group) | {"kept": any(group is other for other in kept)}


def summarise(before: dict[str, Any], after: dict[str, Any], **others: Any) -> dict[str, Any]:
    """OUT/summary.json: what training did to held-out accuracy and language; nulls and {} without an evaluation."""
    compare = lambda key: {
        name: {
            f"{figure}_{when}": report[key][name][figure]
            for figure in evaluate.FIGURES
            for when, report in (("before", before), ("after", after))
        }
        for name in before.get(key, {})
    }
    return {
        "accuracy_before": before.get("reward/accuracy"),
        "accuracy_after": after.get("reward/accuracy"),
        **others,
        "by_language": compare("by_language"),
        "by_level": compare("by_level"),
        "before": before,
        "after": after,
    }


def headline(summary: dict[str, Any]) -> str:
    """`40 steps, accuracy 0.312 -> 0.455`."""
    before, after = summary["accuracy_before"], summary["accuracy_after"]
    known = before is not None and after is not None
    steps = summary["steps"]
    return f"{steps} step{'' if steps == 1 else 's'}" + (
        f", accuracy {before:.3f} -> {after:.3f}" if known else ""
    )


def once(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` returned the first time; read from the file ever after."""
    if made := gather_json(json.loads(path.read_text(encoding="utf-8")) if path.exists() else None)[
        0
    ]:
        return made
    value = make()
    if jax.process_index() == 0 and value:
        write_json(path, value)
    return value


def check_shared(out: Path) -> None:
    """Raises UserError in all processes if one of them does not see what process 0 has written to `out`."""
    gather_json(None)
    blind = [
        process
        for process, sees in enumerate(gather_json((out / "config.json").exists()))
        if not sees
    ]
    if blind:
        raise UserError(
            f"{out}: process 0 writes there, and {len(blind)} of {jax.process_count()} processes, the first of them "
            f"{blind[0]}, do not see it: give an --config.out that all of them share"
        )


def _finished(config: Config) -> bool:
    """Whether OUT holds the summary of all the steps that are wanted; then says so."""
    path = Path(config.out) / "summary.json"
    summary = gather_json(
        json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"steps": -1}
    )[0]
    if summary["steps"] < config.steps:
        return False
    # A schedule that ends at the last step has come to its end.
    further = "to go on raise --config.steps, " if config.optimizer.schedule == "constant" else ""
    print0(
        f"{config.out} is finished: {headline(summary)}; {further}to begin anew change --config.out"
    )
    return True


def _evaluate(run: Run, params: Params) -> dict[str, Any]:
    return evaluate.evaluate(run, params) if run.config.evaluation.problems else {}


@contextlib.contextmanager
def noted_signals() -> Iterator[list[int]]:
    """A list that the first Ctrl-C or SIGTERM is put into, so that the step can be finished and saved; a second one ends
    the program at once."""
    noted: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def note(number: int, _: Any) -> None:
        noted.append(number)
        restore()
        os.write(
            2, b"stopping after this step; once more stops at once\n"
        )  # print is not safe in a signal handler

    for number in handlers:
        signal.signal(number, note)
    try:
        yield noted
    finally:
        restore()


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
