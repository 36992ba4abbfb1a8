"""Accuracy and language on held-out problems; `python -m jaxgrpo.evaluate --config FILE`."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from tqdm import tqdm

from jaxgrpo.build import Run, build_run, load_policy
from jaxgrpo.config import check_named_out, compare, parse_command_line
from jaxgrpo.config.command_line import run_main
from jaxgrpo.distributed.processes import join_processes, print0
from jaxgrpo.errors import UserError
from jaxgrpo.files import write_json
from jaxgrpo.problems import Problem
from jaxgrpo.rollout.groups import JudgedGroup, SamplingRequest
from jaxgrpo.rollout.judge import judged_in_order
from jaxgrpo.rollout.report import Json, check_missing_verdicts, record, summarise
from jaxgrpo.summary import Report, tables
from jaxgrpo.types import Params, SamplingParams


def evaluate(run: Run, params: Params) -> Report:
    """Returns held-out metrics of a policy.

    They are means over problems of means over samples: every problem and sample counts alike. The
    problems and the random numbers are the same at every call. None stands for a mean of no
    verdicts.

        {"reward/accuracy": a, "language/target_word_ratio": r, ...,
         "by_language": {"ko": {"accuracy": a, ...}, ...}, "by_level": {"1": {...}, ...},
         "problems": n, "samples": g, "examples": [completions of a few problems a language]}
    """
    settings = run.config.evaluation
    # The same problems at every call, so that before and after can be compared.
    problems = run.prompt_filter.take(run.heldout, settings.problems)
    groups = sample(run, params, problems)
    missing_path = Path(run.config.out) / "missing.jsonl"
    check_missing_verdicts(groups, run.config.verifier.max_missing, missing_path)
    report = summarise(groups) | {
        "by_language": _summarise_by(groups, lambda problem: problem.language),
        "by_level": _summarise_by(groups, lambda problem: str(problem.level)),
        "problems": len(problems),
        "samples": settings.samples,
        "examples": examples(groups),
    }
    return _without_nan(report)


def sample(run: Run, params: Params, problems: Sequence[Problem]) -> list[JudgedGroup]:
    """Returns a judged group for every problem, in their order."""
    settings = run.config.evaluation
    request = SamplingRequest(
        group_size=settings.samples,
        sampling=SamplingParams(
            settings.temperature, settings.top_k, settings.top_p, settings.min_p
        ),
        purpose="evaluation",
        stop=run.config.sampling.stop,
    )
    session = run.engine.session(params, problems, request, step=0)
    judged = judged_in_order(session, run.judge, run.judge.initial_weights())
    # Step 0: evaluations draw the same random numbers, whenever they are made.
    is_quiet = run.config.quiet or jax.process_index() > 0
    is_hidden = is_quiet or None  # None: hidden where there is no terminal
    bar = tqdm(
        judged,
        "evaluating",
        len(problems),
        unit="problem",
        leave=False,
        disable=is_hidden,
    )
    return list(bar)


def examples(groups: Sequence[JudgedGroup], count: int = 2) -> list[Json]:
    """Returns the first completion of the first few problems of each language, as JSON values."""
    by_language = _partition(groups, lambda problem: problem.language)
    return [record(group) for part in by_language.values() for group in part[:count]]


def _partition(
    groups: Sequence[JudgedGroup], key: Callable[[Problem], str]
) -> dict[str, list[JudgedGroup]]:
    """Returns the groups by a key of their problems, in the order of the keys."""
    parts: dict[str, list[JudgedGroup]] = defaultdict(list)
    for group in groups:
        parts[key(group.problem)].append(group)
    return {name: parts[name] for name in sorted(parts)}


def _summarise_by(
    groups: Sequence[JudgedGroup], key: Callable[[Problem], str]
) -> dict[str, dict[str, float]]:
    """Returns the metrics of the tables for each part of the groups."""
    report = {}
    for name, part in _partition(groups, key).items():
        means = summarise(part)
        report[name] = {
            "accuracy": means["reward/accuracy"],
            "target_word_ratio": means["language/target_word_ratio"],
            "english_word_ratio": means["language/english_word_ratio"],
            "problems": len(part),
        }
    return report


def _without_nan(report: Report) -> Report:
    """Returns the report with None for NaN, for which JSON has no word."""
    plain: Report = {}
    for name, value in report.items():
        if isinstance(value, dict):
            plain[name] = _without_nan(value)
        elif isinstance(value, float) and math.isnan(value):
            plain[name] = None
        else:
            plain[name] = value
    return plain


def main(argv: list[str]) -> None:
    """Evaluates the newest checkpoint in --config.out, or the model itself.

    It prints tables and writes OUT/evaluation.json.
    """
    config = parse_command_line(argv, "jaxgrpo.evaluate")
    if not config.evaluation.problems:
        raise UserError(
            "evaluation.problems is 0: no evaluation; set --config.evaluation.problems=256"
        )
    check_named_out(config.out, argv)
    join_processes(**vars(config.distributed))
    differences = compare(config, config.out)
    # Settings that change what is measured are said, those that change the policy are refused.
    with build_run(config) as run:
        for note in filter(None, [differences, *run.notes]):
            print0(note)
        params, step = load_policy(
            run.programs, run.model_folder, bool(config.lora.rank), config.out
        )
        policy = f"{config.out}, step {step}"
        if step is None:
            policy = f"{run.model_folder}, untrained"
        run.engine.warm_up(params)
        report = evaluate(run, params)
    print0(
        f"{policy}: {report['problems']} held-out problems, {report['samples']} samples of each"
        f"\n\n{tables(report)}"
    )
    if jax.process_index() == 0:
        Path(config.out).mkdir(parents=True, exist_ok=True)
        write_json(Path(config.out) / "evaluation.json", {"of": policy, **report})


if __name__ == "__main__":
    run_main(main)
