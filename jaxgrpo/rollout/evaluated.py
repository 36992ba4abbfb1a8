"""Judged completions of held-out problems as scores and rows: what an evaluation reports."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jaxgrpo import scores
from jaxgrpo.problems import Completion
from jaxgrpo.rollout.groups import JudgedTexts
from jaxgrpo.rollout.report import Json, count_verdicts, mean

KEPT = 0.9
"""The least share of words in the problem's language with which a completion has kept it."""


@dataclass(frozen=True)
class Evaluated:
    """The judged completions of a problem, and which of them give the same answer.

    is_right: [G], 1.0 or 0.0; NaN where it is not known
    answers: what the verifier reads of each; None: no answer, or a verifier that reads none
    votes: [G], as `scores.majority` takes them; None: answers are not compared
    """

    judged: JudgedTexts
    is_right: np.ndarray
    answers: list[str | None]
    votes: np.ndarray | None

    @cached_property
    def scores(self) -> dict[str, float]:
        """Returns the problem's own value of each score that has an interval.

        A problem is a part of the whole, of its language and of its level: it is scored once.
        """
        judged = self.judged
        samples = len(judged.texts)
        accuracy = judged.solved / judged.judged if judged.judged else np.nan
        found = {"accuracy": accuracy}
        for k in scores.counts_of_samples(samples):
            found[f"pass_at_{k}"] = scores.pass_at_k(judged.solved, judged.judged, k)
        if self.votes is not None:
            found[f"maj_at_{samples}"] = scores.majority(self.votes, self.is_right)
        return found


def right_or_wrong(verdicts: np.ndarray) -> np.ndarray:
    """Returns 1.0 for verdicts of 1.0, 0.0 for others, NaN for those that are missing."""
    return np.where(np.isnan(verdicts), np.nan, verdicts == 1.0)


def score(part: Sequence[Evaluated]) -> dict[str, int | float]:
    """Returns the scores of some problems; NaN where no verdict is known.

    {"problems": P, "accuracy": mean, "accuracy_low": of its interval, "accuracy_high": ...,
     "pass_at_1": ..., "maj_at_4": ..., "tokens": mean length, "truncated": share cut off,
     "missing": share of verdicts, "target_word_ratio": mean, "english_word_ratio": mean,
     "in_language": share that kept the language, "accuracy_in_language": accuracy among these}
    """
    report: dict[str, int | float] = {"problems": len(part)}
    for name, values in _by_problem(part).items():
        report[name] = mean(values)
        report[f"{name}_low"], report[f"{name}_high"] = scores.interval(values)
    judged = [one.judged for one in part]
    texts = [text for group in judged for text in group.texts]
    missing = sum(len(group.missing) for group in judged)
    report["tokens"] = mean(text.tokens for text in texts)
    report["truncated"] = mean(not text.finished for text in texts)
    report["missing"] = missing / max(count_verdicts(judged), 1)
    return report | _language_scores(part)


def _by_problem(part: Sequence[Evaluated]) -> dict[str, np.ndarray]:
    """Returns each score that has an interval, of each problem."""
    names = dict.fromkeys(name for one in part for name in one.scores)
    return {
        name: np.array([one.scores.get(name, np.nan) for one in part]) for name in names
    }


def _language_scores(part: Sequence[Evaluated]) -> dict[str, float]:
    """Returns shares of words, and accuracy among the completions that kept the language."""
    # [P * G] each, row by row.
    ratios = {
        name: np.concatenate(
            [one.judged.values[f"language/{name}"] for one in part] or [np.empty(0)]
        )
        for name in ("target_word_ratio", "english_word_ratio")
    }
    is_right = np.concatenate([one.is_right for one in part] or [np.empty(0)])
    target = ratios["target_word_ratio"]
    kept = target >= KEPT
    return {name: mean(values) for name, values in ratios.items()} | {
        "in_language": mean(kept[~np.isnan(target)]),
        "accuracy_in_language": mean(is_right[kept]),
    }


def row(one: Evaluated) -> Json:
    """Returns a problem and all its completions as JSON values; None for a missing verdict."""
    judged = one.judged
    problem = judged.problem
    return {
        "id": problem.id,
        "language": problem.language,
        "level": problem.level,
        "context": problem.context,
        "prompt": problem.prompt,
        "answer": problem.answer,
        "solved": judged.solved,
        "judged": judged.judged,
        "completions": [
            {
                **completion_row(text),
                "answer": one.answers[index],
                "rewards": {
                    name: None if np.isnan(values[index]) else float(values[index])
                    for name, values in judged.values.items()
                },
            }
            for index, text in enumerate(judged.texts)
        ],
    }


def completion_row(text: Completion) -> Json:
    """Returns what a completion itself is, as JSON values."""
    return {"text": str(text), "tokens": text.tokens, "finished": text.finished}
