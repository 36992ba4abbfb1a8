"""Accuracy and language on held-out problems; `python -m jaxgrpo.evaluate --config FILE`.

From Python, `evaluate_all(config)` returns plain dictionaries, one for each policy and data set.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from jaxgrpo.build import Run, build_run, load_policy
from jaxgrpo.config import Config, check_named_out, compare, parse_command_line
from jaxgrpo.config.checks import HELDOUT
from jaxgrpo.config.command_line import run_main
from jaxgrpo.distributed.processes import gather_json, join_processes, print0
from jaxgrpo.errors import UserError
from jaxgrpo.files import run_folder, write_json
from jaxgrpo.policies import Policy, find_policies, with_model
from jaxgrpo.problems import Problem
from jaxgrpo.rewards.maths.votes import votes_of
from jaxgrpo.rollout.comparison import AnswerComparison
from jaxgrpo.rollout.completions_file import CompletionsFile, keep_rows
from jaxgrpo.rollout.evaluated import Evaluated, row, score
from jaxgrpo.rollout.groups import JudgedGroup, JudgedTexts, SamplingRequest
from jaxgrpo.rollout.judge import judged_in_order
from jaxgrpo.rollout.report import Json, check_missing_verdicts, record, summarise
from jaxgrpo.summary import Report, scores_table, tables, write_csv
from jaxgrpo.types import Params, SamplingParams

# 1. One policy, one data set.


def evaluate(
    run: Run, params: Params, completions: CompletionsFile | None = None
) -> Report:
    """Returns held-out metrics of a policy.

    They are means over problems of means over samples: every problem and sample counts alike. The
    problems and the random numbers are the same at every call. None stands for a mean of no
    verdicts.

        {"reward/accuracy": a, "language/target_word_ratio": r, ...,
         "scores": what `evaluated.score` returns of all problems,
         "by_language": {"ko": the same, ...}, "by_level": {"1": the same, ...},
         "problems": n, "samples": g, "examples": [completions of a few problems a language]}

    completions: a file of them; what is there is not sampled again
    """
    by_id: dict[str, JudgedTexts] = {}
    with answer_comparison(run.config) as comparison:
        for one in _sample_or_read(run, params, completions):
            by_id[one.problem.id] = one
            comparison.add(one)
        judged = [by_id[problem.id] for problem in run.heldout]
        missing_path = run_folder(run.config.out) / "missing.jsonl"
        check_missing_verdicts(judged, run.config.verifier.max_missing, missing_path)
        evaluated = comparison.results(judged)
    if completions is not None:
        completions.replace([row(one) for one in evaluated])
    report = summarise(judged) | {
        "scores": score(evaluated),
        "by_language": _score_by(evaluated, lambda problem: problem.language),
        "by_level": _score_by(evaluated, lambda problem: str(problem.level)),
        "problems": len(judged),
        "samples": run.config.evaluation.samples,
        "examples": examples(judged),
    }
    return _without_nan(report)


def sampling_request(config: Config) -> SamplingRequest:
    """Returns what is sampled of each problem."""
    settings = config.evaluation
    return SamplingRequest(
        group_size=settings.samples,
        sampling=SamplingParams(
            settings.temperature, settings.top_k, settings.top_p, settings.min_p
        ),
        purpose="evaluation",
        stop=config.sampling.stop,
    )


def sample(
    run: Run, params: Params, problems: Sequence[Problem], done: int = 0
) -> Iterator[JudgedGroup]:
    """Yields a judged group for every problem, in their order. done: problems before these."""
    # Step 0: evaluations draw the same random numbers, whenever they are made.
    request = sampling_request(run.config)
    session = run.engine.session(params, problems, request, step=0)
    judged = judged_in_order(session, run.judge, run.judge.initial_weights())
    is_quiet = run.config.quiet or jax.process_index() > 0
    is_hidden = is_quiet or None  # None: hidden where there is no terminal
    yield from tqdm(
        judged,
        "evaluating",
        done + len(problems),
        initial=done,
        unit="problem",
        leave=False,
        disable=is_hidden,
    )


def _sample_or_read(
    run: Run, params: Params, completions: CompletionsFile | None
) -> Iterator[JudgedTexts]:
    """Yields the judged completions of every problem; those that are in the file are read."""
    problems = run.heldout
    if completions is None:
        yield from sample(run, params, problems)
        return
    texts = completions.texts(problems, run.config.evaluation.samples)
    # What was read is judged anew: rewards may have changed, and sampling is what takes long.
    known = [problem for problem in problems if problem.id in texts]
    yield from run.judge.judge_texts(
        [(problem, texts[problem.id]) for problem in known], run.judge.initial_weights()
    )
    others = [problem for problem in problems if problem.id not in texts]
    if others:
        for group in sample(run, params, others, done=len(known)):
            completions.append(group)
            yield group


def answer_comparison(config: Config) -> AnswerComparison:
    """Returns what compares the answers of a config's evaluations."""
    return AnswerComparison(
        config.solved_by,
        votes_of(config.rewards[config.solved_by].function),
        config.evaluation.samples,
        config.verifier.workers,
        config.verifier.deadline,
    )


def examples(groups: Sequence[JudgedTexts], count: int = 2) -> list[Json]:
    """Returns the first completion of the first few problems of each language, as JSON values."""
    by_language: dict[str, list[Json]] = defaultdict(list)
    for group in groups:
        if len(by_language[group.problem.language]) < count:
            by_language[group.problem.language].append(record(group))
    return [one for language in sorted(by_language) for one in by_language[language]]


def _score_by(
    evaluated: Sequence[Evaluated], key: Callable[[Problem], str]
) -> dict[str, dict[str, int | float]]:
    """Returns the scores of each part of the problems, in the order of their keys."""
    parts: dict[str, list[Evaluated]] = defaultdict(list)
    for one in evaluated:
        parts[key(one.judged.problem)].append(one)
    return {name: score(parts[name]) for name in sorted(parts)}


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


# 2. While training.


def step_path(out: str | Path, step: int) -> Path:
    """Returns the file of the evaluation after a step."""
    return run_folder(out) / "evaluations" / f"{step}.json"


def is_due(config: Config, step: int) -> bool:
    """Returns whether the policy is evaluated after this step, while it is trained."""
    settings = config.evaluation
    return bool(settings.every and settings.problems and step % settings.every == 0)


def after_step(run: Run, params: Params, step: int) -> dict[str, float]:
    """Evaluates the policy after a step, if that is due, and writes OUT/evaluations/STEP.json.

    Returns the scores as metrics, "evaluation/accuracy" and its like; {} where it is not due.
    """
    if not is_due(run.config, step):
        return {}
    started_at = time.perf_counter()
    report = evaluate(run, params)
    if jax.process_index() == 0:
        path = step_path(run.config.out, step)
        path.parent.mkdir(exist_ok=True)
        write_json(path, report)
    return as_metrics(report) | {"time/evaluation": time.perf_counter() - started_at}


def as_metrics(report: Report) -> dict[str, float]:
    """Returns the scores of an evaluation by the names of metrics; NaN for None."""
    named = {f"evaluation/{name}": value for name, value in report["scores"].items()}
    for language, part in report["by_language"].items():
        named[f"evaluation/{language}/accuracy"] = part["accuracy"]
        named[f"evaluation/{language}/target_word_ratio"] = part["target_word_ratio"]
    return {
        name: math.nan if value is None else float(value)
        for name, value in named.items()
    }


def scores_of(metrics: Mapping[str, float]) -> dict[str, float]:
    """Returns the scores of an evaluation among a step's metrics, those that are known."""
    return {
        name.removeprefix("evaluation/"): value
        for name, value in metrics.items()
        if name.startswith("evaluation/") and np.isfinite(value)
    }


def check(config: Config) -> None:
    """Raises UserError for a best checkpoint by answers that nobody reads."""
    keep_best = config.evaluation.keep_best
    reward = config.rewards[config.solved_by].function
    if keep_best.startswith("maj_at_") and votes_of(reward) is None:
        raise UserError(
            f"evaluation.keep_best is {keep_best!r}, and the reward {config.solved_by!r} reads no "
            "answers that could be counted; set it to 'accuracy'"
        )


# 3. Several policies, several data sets: the program.


def evaluate_all(config: Config) -> list[Report]:
    """Returns the evaluation of each of config.evaluation.policies on each data set.

    Each is what `evaluate` returns, after {"of": policy, "policy": path, "step": its step or None,
    "set": name}. The data sets are the config's held-out problems, "heldout", and those of
    config.evaluation.sets. All completions are in OUT/evaluation.jsonl; what is there already of
    the same policy and settings is not sampled again.

    Raises UserError for bad input, before device time is spent.
    """
    if not config.evaluation.problems:
        raise UserError(
            "evaluation.problems is 0: no evaluation; set --config.evaluation.problems=256"
        )
    join_processes(**vars(config.distributed))
    policies = find_policies(config)
    # Settings that change what is measured are said, those that change the policy are refused.
    outs = {str(policy.out): None for policy in policies if policy.out}
    for out in outs or [config.out]:
        if note := compare(config, out):
            print0(note)
    keys = {policy: policy.key(config) for policy in policies}
    reports: list[Report] = []
    for _, group in groupby(policies, key=lambda policy: policy.model):
        same_model = list(group)
        with build_run(with_model(config, same_model[0]), trains=False) as run:
            problem_sets = _problem_sets(run)
            _prepare(config, list(keys.values()))
            for policy in same_model:
                reports += _evaluate_policy(run, policy, keys[policy], problem_sets)
    return reports


def _prepare(config: Config, keys: Sequence[str]) -> None:
    """Makes OUT, and drops the completions there of all policies and settings but these."""
    names = [HELDOUT, *config.evaluation.sets]
    if jax.process_index() == 0:
        run_folder(config.out).mkdir(parents=True, exist_ok=True)
    keep_rows(completions_path(config), [f"{key}/{n}" for key in keys for n in names])
    gather_json(None)  # nobody writes or reads before that is done


def completions_path(config: Config) -> Path:
    """Returns the file of all completions of the program's evaluations."""
    return run_folder(config.out) / "evaluation.jsonl"


def _problem_sets(run: Run) -> dict[str, Sequence[Problem]]:
    """Returns the held-out problems of each data set, checked; it prints the run's notes."""
    notes = [*run.notes]
    count = run.config.evaluation.problems
    problem_sets = {HELDOUT: run.heldout}
    for name, source in run.config.evaluation.sets.items():
        heldout = source.heldout()
        note = run.prompt_filter.check(heldout, f"held-out {name}")
        problem_sets[name] = run.prompt_filter.take(heldout, count)
        notes += [note] if note else []
    for note in notes:
        print0(note)
    return problem_sets


def _evaluate_policy(
    run: Run, policy: Policy, key: str, problem_sets: Mapping[str, Sequence[Problem]]
) -> Iterator[Report]:
    """Yields the evaluations of a policy, one a data set."""
    config = run.config
    params, _ = load_policy(
        run.programs,
        run.model_folder,
        bool(config.lora.rank),
        policy.out,
        step=policy.step,
    )
    run.engine.warm_up(params)
    for name, problems in problem_sets.items():
        about = {
            "of": policy.name,
            "policy": str(policy.out or policy.model),
            "step": policy.step,
            "set": name,
        }
        completions = CompletionsFile(
            completions_path(config), about | {"key": f"{key}/{name}"}
        )
        yield about | evaluate(replace(run, heldout=problems), params, completions)


def main(argv: list[str]) -> None:
    """Evaluates as the command line says: the newest checkpoint in --config.out, or the model.

    It prints tables and writes OUT/evaluation.json, evaluation.csv and evaluation.jsonl.
    """
    config = parse_command_line(argv, "jaxgrpo.evaluate", also_sft=True)
    check_named_out(config.out, argv)
    reports = evaluate_all(config)
    for report in reports:
        name = f" of {report['set']}" if config.evaluation.sets else ""
        print0(
            f"{report['of']}: {report['problems']} held-out problems{name}, "
            f"{report['samples']} samples of each\n\n{tables(report)}\n\n{scores_table(report)}"
        )
    if jax.process_index() == 0:
        out = run_folder(config.out)
        # One evaluation is the file; several are a list in it.
        content = reports[0] if len(reports) == 1 else {"evaluations": reports}
        write_json(out / "evaluation.json", content)
        write_csv(out / "evaluation.csv", reports)


if __name__ == "__main__":
    run_main(main)
