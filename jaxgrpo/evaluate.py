"""Accuracy and language on held-out problems; `python -m jaxgrpo.evaluate --config FILE`."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from jaxgrpo.build import Run, build_run
from jaxgrpo.checkpoint import Checkpoints
from jaxgrpo.config import Config, compare, parse_command_line
from jaxgrpo.config.command_line import run_main
from jaxgrpo.console import format_table
from jaxgrpo.distributed.processes import join_processes, print0
from jaxgrpo.errors import UserError
from jaxgrpo.files import write_json
from jaxgrpo.models import lora
from jaxgrpo.problems import Problem
from jaxgrpo.rollout.collect import check_missing_verdicts, judged_in_order, record, summarise
from jaxgrpo.rollout.engine import Draw, Group
from jaxgrpo.types import Params

FIGURES = {
    "accuracy": "accuracy",
    "target_word_ratio": "target words",
    "english_word_ratio": "English words",
}
"""A report's figures, and what the tables call them."""


def evaluate(run: Run, params: Params) -> dict[str, Any]:
    """Held-out figures of a policy: means over problems of means over samples; every problem and sample counts alike.

    {"reward/accuracy": a, "language/target_word_ratio": r, ..., "by_language": {"ko": {"accuracy": a, ...}},
    "by_level": {"1": {...}}, "problems": n, "samples": g, "examples": [what it wrote about a few problems of each language]};
    None where there was no verdict to take a mean of. The problems and the random numbers are the same at every call.
    """
    wanted = run.config.evaluation
    problems = run.fitting.first(run.heldout, wanted.problems)
    groups = sample(run, params, problems)
    check_missing_verdicts(
        groups, run.config.verifier.max_missing, Path(run.config.out) / "missing.jsonl"
    )
    report = summarise(groups) | {
        "by_language": _by(groups, lambda problem: problem.language),
        "by_level": _by(groups, lambda problem: str(problem.level)),
        "problems": len(problems),
        "samples": wanted.samples,
        "examples": examples(groups),
    }
    return _plain(report)


def sample(run: Run, params: Params, problems: Sequence[Problem]) -> list[Group]:
    """A judged group for every problem, in their order."""
    wanted = run.config.evaluation
    draw = Draw(
        wanted.temperature, wanted.top_k, wanted.top_p, wanted.min_p, stop=run.config.sampling.stop
    )
    wave = run.engine.wave(params, problems, wanted.samples, draw, 0, "evaluation")
    judged = judged_in_order(wave, run.judge)
    hidden = jax.process_index() > 0 or None  # None: where there is no terminal
    return list(
        tqdm(judged, "evaluating", len(problems), unit="problem", leave=False, disable=hidden)
    )


def tables(before: dict[str, Any], after: dict[str, Any] | None = None) -> str:
    """An evaluation as two tables, by language and by level; with a second one, before and after side by side."""
    reports = {"": before} if after is None else {" before": before, " after": after}
    blocks = []
    for key, figures in (("language", list(FIGURES)), ("level", ["accuracy"])):
        names = list(before[f"by_{key}"])
        rows = [
            {key: name}
            | {
                f"{FIGURES[figure]}{when}": report[f"by_{key}"].get(name, {}).get(figure)
                for figure in figures
                for when, report in reports.items()
            }
            for name in [*names, "all"]
        ]
        for figure in figures:
            for when, report in reports.items():
                prefix = "reward" if figure == "accuracy" else "language"
                rows[-1][f"{FIGURES[figure]}{when}"] = report[f"{prefix}/{figure}"]
        blocks.append(format_table(rows, list(rows[0])))
    return "\n\n".join(blocks)


def examples(groups: Sequence[Group], most: int = 2) -> list[dict[str, Any]]:
    """The first completion of the first few problems of each language, as JSON values."""
    parts = _parts(groups, lambda problem: problem.language)
    return [record(group) for part in parts.values() for group in part[:most]]


def _parts(groups: Sequence[Group], key: Callable[[Problem], str]) -> dict[str, list[Group]]:
    parts: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        parts[key(group.problem)].append(group)
    return {name: parts[name] for name in sorted(parts)}


def _by(groups: Sequence[Group], key: Callable[[Problem], str]) -> dict[str, dict[str, float]]:
    report = {}
    for name, part in _parts(groups, key).items():
        means = summarise(part)
        report[name] = {
            "accuracy": means["reward/accuracy"],
            "target_word_ratio": means["language/target_word_ratio"],
            "english_word_ratio": means["language/english_word_ratio"],
            "problems": len(part),
        }
    return report


def latest_params(run: Run) -> tuple[Params, str]:
    """The parameters of the newest checkpoint in the config's `out`, or the model's own where there is none; and which."""
    with Checkpoints(run.config.out) as checkpoints:
        step = checkpoints.latest()
        which = (
            f"{run.model_folder}, untrained" if step is None else f"{run.config.out}, step {step}"
        )
        trained = None if step is None else checkpoints.restore_params(run.steps.state_like.params)
    if not run.config.lora.rank:
        return (run.load_params() if trained is None else trained), which
    params = run.load_params()
    if trained is None:
        trained = run.steps.init(params).params  # adapters that change nothing yet
    return lora.attach(run.steps.refer(params), trained), which


def main(argv: list[str]) -> None:
    """Evaluates the newest checkpoint in --config.out, or the model itself; prints tables, writes OUT/evaluation.json."""
    config: Config = parse_command_line(argv, "jaxgrpo.evaluate")
    if not config.evaluation.problems:
        raise UserError(
            "evaluation.problems is 0: no evaluation; set --config.evaluation.problems=256"
        )
    join_processes(**vars(config.distributed))
    differs = compare(config, config.out)
    with build_run(config) as run:
        for note in filter(None, [differs, *run.notes]):
            print0(note)
        params, which = latest_params(run)
        run.engine.warm_up(params)
        report = evaluate(run, params)
    print0(
        f"{which}: {report['problems']} held-out problems, {report['samples']} samples of each\n\n{tables(report)}"
    )
    if jax.process_index() == 0:
        Path(config.out).mkdir(parents=True, exist_ok=True)
        write_json(Path(config.out) / "evaluation.json", {"of": which, **report})


def _plain(report: dict[str, Any]) -> dict[str, Any]:
    """None for NaN, for which JSON has no word."""
    plain = lambda value: (
        _plain(value) if isinstance(value, dict) else None if value != value else value
    )
    return {name: plain(value) for name, value in report.items()}


if __name__ == "__main__":
    run_main(main)
