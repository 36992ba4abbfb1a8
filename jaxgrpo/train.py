"""The loop: `train(config)` yields each step's metrics; `python -m jaxgrpo.train --config FILE --config.name=value ...`.

    data -> prompts -> rollouts -> rewards -> difficulty filter -> batch -> update -> metrics, checkpoint
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxgrpo import config as settings
from jaxgrpo import evaluate, metrics
from jaxgrpo.checkpoint import Checkpoints
from jaxgrpo.command_line import run_main
from jaxgrpo.config import Config, parse_command_line
from jaxgrpo.data.order import Order
from jaxgrpo.difficulty import History
from jaxgrpo.mesh import to_device
from jaxgrpo.problems import Problem
from jaxgrpo.rollout import Group, Wanted, collect, make_batch
from jaxgrpo.run import Run, prepare
from jaxgrpo.types import Params, TrainState


def train(config: Config) -> Iterator[dict[str, float]]:
    """Trains, and yields the metrics of each step as they are written to OUT/metrics.jsonl.

    Goes on from the newest checkpoint in config.out. Before the first step and after the last it evaluates on held-out
    problems; OUT/summary.json then says what training did. UserError for bad input, before any device time is spent.
    """
    settings.check_same(config, config.out)
    started = time.time()
    with prepare(config) as run, Checkpoints(config.out, config.keep_checkpoints) as checkpoints:
        settings.save(config, config.out)
        for note in run.notes:
            print(note)
        state, host = restore(run, checkpoints)
        reference = run.load_params()
        if state is None:
            state = run.steps.init(reference)
        order = Order(run.task.problems, config.seed)
        history, seconds = History(), 0.0
        if host:
            order.restore(host["order"])
            history, seconds = History.restore(host["history"]), host["seconds"]
            print(f"going on from step {host['step']} of {config.steps} in {config.out}")
        first = int(state.step) + 1
        before = once(Path(config.out) / "before.json", partial(_evaluate, run, reference))
        with metrics.Writer(config.out, first, config.steps) as writer:
            for step in range(first, config.steps + 1):
                state, values = take_step(run, state, reference, order, history, step, writer)
                writer.write(step, values)
                yield {"step": step} | values
                if step % config.save_every == 0 or step == config.steps:
                    writer.flush()
                    spent = seconds + time.time() - started
                    checkpoints.save(step, state, host_state(order, history, step, spent))
        after = _evaluate(run, state.params)
    seconds += time.time() - started
    summary = summarise(before, after, steps=config.steps, seconds=seconds)
    write_json(Path(config.out) / "summary.json", summary)
    metrics.plot(config.out)
    print(f"\n{evaluate.tables(before, after)}\n")
    print(f"accuracy {summary['accuracy_before']:.3f} -> {summary['accuracy_after']:.3f} in {seconds:.0f} s; see {config.out}")


def take_step(
    run: Run,
    state: TrainState,
    reference: Params,
    order: Order,
    history: History,
    step: int,
    writer: metrics.Writer,
) -> tuple[TrainState, dict[str, float]]:
    """One step: collect groups, update on them. Waits for the update: the next step's first act needs it anyway, and the
    times are then true."""
    config, started = run.config, time.perf_counter()
    b, f = config.batch, config.filter
    most = b.groups if f.rule == "off" else int(f.max_prompts * b.groups)
    wanted = Wanted(b.groups, b.group_size, config.sampling.temperature, f.rule, f.low, f.high, most)
    ask = partial(ask_fitting, order, run.fitting.fits)
    groups, figures, asked = collect(run.sampler, run.judge, state.params, ask, wanted, step)
    for group in asked:
        history.record(group.problem.id, group.solved, group.judged)
    if config.show_rollouts_every and (step - 1) % config.show_rollouts_every == 0:
        writer.rollouts(step, records(asked, groups))
    updating = time.perf_counter()
    if groups:
        advantages = np.asarray(run.steps.advantages(config.objective, np.stack([group.rewards for group in groups])))
        batch = to_device(make_batch(groups, advantages, b.groups), run.steps.rows)
        state, learned = run.steps.update(state, reference, batch, config.objective, config.sampling.temperature)
    else:
        state, learned = state._replace(step=state.step + 1), {}
    learned = {name: float(value) for name, value in jax.device_get(learned).items()}
    now = time.perf_counter()
    times = {"time/update": now - updating, "time/step": now - started}
    visited = {"data/pass": order.epoch, "data/visited": len(history.visits)}
    return state, figures | learned | times | visited


def ask_fitting(order: Order, fits: Callable[[Problem], bool], count: int) -> list[Problem]:
    """The next `count` problems whose prompts fit; the others are passed over."""
    found: list[Problem] = []
    while len(found) < count:
        found += [problem for problem in order.take(count - len(found)) if fits(problem)]
    return found


def records(asked: list[Group], kept: list[Group], most: int = 4) -> Iterator[dict[str, Any]]:
    """The first completion of the first few groups of a step, as JSON values."""
    for group in asked[:most]:
        problem = group.problem
        yield {
            "id": problem.id,
            "language": problem.language,
            "level": problem.level,
            "prompt": problem.prompt,
            "completion": group.texts[0],
            "answer": problem.answer,
            "rewards": {name: None if np.isnan(values[0]) else float(values[0]) for name, values in group.values.items()},
            "solved": group.solved,
            "judged": group.judged,
            "kept": any(group is other for other in kept),
        }


def restore(run: Run, checkpoints: Checkpoints) -> tuple[TrainState | None, dict[str, Any]]:
    """The newest checkpoint's state and host state, or None and nothing."""
    if checkpoints.latest() is None:
        return None, {}
    return checkpoints.restore(run.steps.state_like)


def host_state(order: Order, history: History, step: int, seconds: float) -> dict[str, Any]:
    """What the host must remember to go on as if nothing had happened."""
    return {"step": step, "order": order.state(), "history": history.state(), "seconds": seconds}


def summarise(before: dict[str, Any], after: dict[str, Any], **others: float) -> dict[str, Any]:
    """OUT/summary.json: what training did to held-out accuracy and language."""
    compare = lambda key: {
        name: {
            f"{figure}_{when}": report[key][name][figure]
            for figure in evaluate.FIGURES
            for when, report in (("before", before), ("after", after))
        }
        for name in before[key]
    }
    return {
        "accuracy_before": before["reward/accuracy"],
        "accuracy_after": after["reward/accuracy"],
        **others,
        "by_language": compare("by_language"),
        "by_level": compare("by_level"),
        "before": before,
        "after": after,
    }


def once(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` returned the first time; read from the file ever after."""
    if path.exists():
        return json.loads(path.read_text())
    value = make()
    write_json(path, value)
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes a file whole or not at all."""
    partial_path = path.with_suffix(".json.partial")
    partial_path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
    os.replace(partial_path, path)


def _evaluate(run: Run, params: Params) -> dict[str, Any]:
    report = evaluate.evaluate(run, params)
    print(f"\n{evaluate.tables(report)}\n", flush=True)
    return report


def main(argv: list[str]) -> None:
    """Trains as the command line says."""
    for _ in train(parse_command_line(argv)):
        pass


if __name__ == "__main__":
    run_main(main)
