"""Judged groups as numbers and records: means, samples to look at, verdicts that are missing."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from jaxgrpo.errors import UserError
from jaxgrpo.files import write_atomically
from jaxgrpo.rollout.groups import JudgedTexts

SHOWN_GROUPS = 4
"""Groups of a step of which a completion is shown, where they are not shown whole."""

MAX_SAVED_TEXTS = 100
"""The number of texts that are saved, at most, whose verdicts are missing."""

Json = dict[str, Any]
"""JSON values by name."""


class MissingVerdictsError(UserError):
    """So many verdicts cannot be had that what is trained is not what was asked for."""


def summarise(groups: Sequence[JudgedTexts]) -> dict[str, float]:
    """Returns means over all completions: rewards, lengths, accuracy and language by language.

    Missing verdicts are left out, and counted.
    """
    values: dict[str, list] = defaultdict(list)
    for group in groups:
        language = group.problem.language
        accuracy = group.solved / group.judged if group.judged else math.nan
        values["reward/mean"].extend(group.rewards)
        values["reward/accuracy"].append(accuracy)
        values[f"accuracy/{language}"].append(accuracy)
        values["completion/tokens"].extend(text.tokens for text in group.texts)
        values["completion/truncated"].extend(not text.finished for text in group.texts)
        for name, numbers in group.values.items():
            # Languages are told apart: language/ratio, and language/ko/ratio.
            if name.startswith("language/"):
                values[name].extend(numbers)
                values[name.replace("/", f"/{language}/", 1)].extend(numbers)
            # reward/accuracy is always the pass rate, whatever the rewards are called.
            elif f"reward/{name}" != "reward/accuracy":
                values[f"reward/{name}"].extend(numbers)
    means = {name: mean(numbers) for name, numbers in values.items()}
    reasons = Counter(reason for group in groups for reason in group.missing.values())
    means["verdict/missing"] = sum(reasons.values()) / max(count_verdicts(groups), 1)
    return means | {
        f"verdict/missing/{reason}": float(count) for reason, count in reasons.items()
    }


def verdict_means(groups: Sequence[JudgedTexts]) -> dict[str, float]:
    """Returns each reward's mean over all completions of the groups.

    Missing verdicts are left out; a mean is NaN where all are missing.
    """
    values: dict[str, list] = defaultdict(list)
    for group in groups:
        for name, numbers in group.values.items():
            values[name].extend(numbers)
    return {name: mean(numbers) for name, numbers in values.items()}


def record(group: JudgedTexts, sample: int = 0) -> Json:
    """Returns a problem and one of its completions as JSON values.

    sample: the completion's place in the group

    A missing verdict is None, and so is the sum that it is missing from.
    """
    problem = group.problem
    text = group.texts[sample]
    rewards = {name: numbers[sample] for name, numbers in group.values.items()}
    return {
        "id": problem.id,
        "language": problem.language,
        "level": problem.level,
        "context": problem.context,
        "prompt": problem.prompt,
        "completion": text,
        "answer": problem.answer,
        "rewards": {name: _nullable(value) for name, value in rewards.items()},
        "solved": group.solved,
        "judged": group.judged,
        "sample": sample,
        "samples": len(group.texts),
        "reward": _nullable(group.rewards[sample]),
        "tokens": text.tokens,
        "finished": text.finished,
    }


def shown_rollouts(
    asked: Sequence[JudgedTexts],
    kept: Sequence[JudgedTexts],
    advantages: Float[np.ndarray, "P G"] | None = None,
    whole: bool = False,
) -> Iterator[Json]:
    """Yields completions of a step as JSON values, those of a group one after the other.

    advantages: of the groups that were kept; None: they are not known
    whole: whether they are all completions of all groups, or the first of the first few groups
    """
    places = {id(group): place for place, group in enumerate(kept)}
    for group in asked if whole else asked[:SHOWN_GROUPS]:
        place = places.get(id(group))
        for sample in range(len(group.texts) if whole else 1):
            advantage = None
            if place is not None and advantages is not None:
                advantage = _nullable(advantages[place, sample])
            yield record(group, sample) | {
                "advantage": advantage,
                "kept": place is not None,
            }


def _nullable(value: float) -> float | None:
    """Returns a number as JSON has it: None for NaN."""
    return None if math.isnan(value) else float(value)


def check_missing_verdicts(
    groups: Sequence[JudgedTexts], max_share: float, path: Path
) -> None:
    """Raises MissingVerdictsError if a greater share of verdicts is missing than `max_share`.

    The texts are then in a JSON Lines file at `path`, those that the most frequent reason stands
    for first.
    """
    wanted = count_verdicts(groups)
    missing = [
        (name, reason, group, row)
        for group in groups
        for (row, name), reason in group.missing.items()
    ]
    if len(missing) <= max_share * wanted:
        return
    # The most frequent kind of failure comes first: it is the one to mend.
    counts = Counter((name, reason) for name, reason, _, _ in missing)
    missing.sort(key=lambda item: counts[item[:2]], reverse=True)
    lines = [
        {
            "reward": name,
            "missing": reason,
            "id": group.problem.id,
            "answer": group.problem.answer,
            "text": group.texts[row],
        }
        for name, reason, group, row in missing[:MAX_SAVED_TEXTS]
    ]
    # All processes raise; one of them writes.
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_atomically(path, text.encode("utf-8"))
    (name, reason), count = counts.most_common(1)[0]
    raise MissingVerdictsError(
        f"{len(missing):,} of {wanted:,} verdicts are missing, more than "
        f"verifier.max_missing={max_share:g}; most of all {name!r} for {reason!r}, {count:,} "
        f"times: the texts are in {path}; mend the reward, or raise verifier.max_missing"
    )


def count_verdicts(groups: Sequence[JudgedTexts]) -> int:
    """Returns the number of verdicts that were asked for."""
    return sum(len(numbers) for group in groups for numbers in group.values.values())


def mean(numbers: Iterable[int | float | np.number | np.bool_]) -> float:
    """Returns the mean of the numbers that are not NaN; NaN if there is none."""
    present = [float(number) for number in numbers if not math.isnan(number)]
    return math.fsum(present) / len(present) if present else math.nan
