"""Evaluates what supervised training makes: the loss of held-out examples, and sampled completions.

Completions are sampled and judged as reinforcement learning's are, where a config has rewards.
"""

import time

import jax
import numpy as np

from jaxgrpo import evaluate as sampled
from jaxgrpo.console import format_table
from jaxgrpo.distributed.mesh import to_device, to_host
from jaxgrpo.files import write_json
from jaxgrpo.losses import Supervised
from jaxgrpo.sft.build import SFTRun
from jaxgrpo.summary import Report, before_and_after
from jaxgrpo.types import Params, TrainState


def evaluate(sft_run: SFTRun, state: TrainState, reference: Params | None) -> Report:
    """Returns the evaluation of a state; {} where none is asked for.

        {"loss": nats a token of the completions, "loss_by_language": {"ko": the same, ...}}

    and, with rewards, all that `jaxgrpo.evaluate.evaluate` returns.

    reference: the adapters' base; None: there are no adapters
    """
    if not sft_run.heldout:
        return {}
    report: Report = {}
    if sft_run.config.rewards:
        run = sft_run.run
        report = sampled.evaluate(run, run.policy(reference, state.params))
    return report | heldout_loss(sft_run, state, reference)


def heldout_loss(
    sft_run: SFTRun, state: TrainState, reference: Params | None
) -> Report:
    """Returns the loss of the held-out examples, of all and of each language.

    It is a mean over the tokens of completions: each counts alike, as in training.
    """
    programs = sft_run.run.programs
    losses: dict[str, float] = {}
    tokens: dict[str, int] = {}
    for language, batches in sft_run.heldout.items():
        losses[language] = 0.0
        tokens[language] = 0
        for batch in batches:
            placed = to_device(batch, programs.row_sharding)
            scored = programs.score(state, reference, placed, Supervised(), 1.0)
            logprobs = to_host(scored.old_logprobs)[batch.completion_mask]
            losses[language] -= float(np.sum(logprobs, dtype=np.float64))
            tokens[language] += logprobs.size
    return {
        "loss": sum(losses.values()) / sum(tokens.values()),
        "loss_by_language": {
            language: loss / tokens[language] for language, loss in losses.items()
        },
    }


def after_step(
    sft_run: SFTRun, state: TrainState, reference: Params | None, step: int
) -> dict[str, float]:
    """Evaluates a state after a step, if that is due, and writes OUT/evaluations/STEP.json.

    Returns metrics, "evaluation/loss" and its like; {} where it is not due.
    """
    config = sft_run.run.config
    if not sampled.is_due(config, step):
        return {}
    started_at = time.perf_counter()
    report = evaluate(sft_run, state, reference)
    if jax.process_index() == 0:
        path = sampled.step_path(config.out, step)
        path.parent.mkdir(exist_ok=True)
        write_json(path, report)
    return as_metrics(report) | {"time/evaluation": time.perf_counter() - started_at}


def as_metrics(report: Report) -> dict[str, float]:
    """Returns the losses and scores of an evaluation by the names of metrics."""
    metrics = sampled.as_metrics(report) if "scores" in report else {}
    metrics["evaluation/loss"] = report["loss"]
    for language, loss in report["loss_by_language"].items():
        metrics[f"evaluation/{language}/loss"] = loss
    return metrics


def loss_table(before: Report, after: Report | None = None) -> str:
    """Returns the losses by language as a table.

    With a second evaluation, a value is "before -> after".
    """
    reports = [before] if after is None else [before, after]
    rows: list[dict[str, object]] = []
    for language in before["loss_by_language"]:
        losses = [report["loss_by_language"].get(language) for report in reports]
        rows.append({"language": language, "loss": before_and_after(losses)})
    losses = [report["loss"] for report in reports]
    rows.append({"language": "all", "loss": before_and_after(losses)})
    return format_table(rows, list(rows[0]))
