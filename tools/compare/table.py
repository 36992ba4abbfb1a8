"""The results of a comparison, over seeds, and their Markdown table."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from jaxgrpo import metrics
from tools.compare.runs import Task

CONFIDENCE = 0.95
COLUMNS = (
    "arm",
    "runs",
    "accuracy after",
    "gain",
    "gain, to the first arm's",
    "tokens sampled",
    "gain a million tokens",
    "tokens clipped",
    "words in the prompt's language",
    "entropy after",
    "s a step",
)


@dataclass(frozen=True)
class Result:
    """The result of a run.

    before, after: held-out accuracy, a share
    tokens: sampled in training, in groups that were judged or were left unfinished
    clipped: share of the trained tokens whose ratio was clipped, a mean over the steps
    words: share of the words in the prompt's language, held out, after
    entropy: nats a token, a mean over the last quarter of the steps
    seconds: of a step, the median, beside the other runs
    """

    before: float
    after: float
    tokens: float
    clipped: float
    words: float
    entropy: float
    seconds: float

    @property
    def gain(self) -> float:
        """Held-out accuracy that training added."""
        return self.after - self.before


def read_result(task: Task) -> Result:
    """Returns the result of a run that is done."""
    summary = json.loads((task.folder / "summary.json").read_text())
    steps = metrics.read(task.folder)
    # A rate times its time: what is in flight when a step ends was sampled, too.
    tokens = _column(steps, "rollout/tokens_per_s") * _column(steps, "time/rollout")
    clipped = _column(steps, "policy/clipped_low", "policy/clipped_high")
    entropy = _column(steps, "policy/entropy")
    return Result(
        before=summary["accuracy_before"],
        after=summary["accuracy_after"],
        tokens=float(tokens.sum()),
        clipped=_mean(clipped),
        words=summary["after"]["language/target_word_ratio"],
        entropy=_mean(entropy[-max(1, len(entropy) // 4) :]),
        seconds=statistics.median(_column(steps, "time/step").tolist() or [math.nan]),
    )


def _column(
    steps: Sequence[Mapping[str, int | float | None]], *names: str
) -> np.ndarray:
    """Returns the sum of some metrics at each step that has them all."""
    rows = [[step.get(name) for name in names] for step in steps]
    present = [row for row in rows if None not in row]
    return np.array(present, float).reshape(-1, len(names)).sum(axis=1)


def _mean(values: np.ndarray) -> float:
    """Returns the mean, NaN of nothing."""
    return float(values.mean()) if values.size else math.nan


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean, and the half width of its 95 % interval by Student's t (NaN: one value)."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, math.nan
    # Of a few seeds the deviation itself is uncertain: a normal quantile would be too small.
    error = float(stats.sem(values))
    return mean, float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * error


def markdown(results: dict[str, dict[int, Result]]) -> str:
    """Returns the table of the arms: name -> seed -> result. Differences are seed by seed.

    results: of all arms in their order, of which some may have no run yet
    """
    first = next(iter(results.values()))
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * (len(COLUMNS) - 1)]
    for name, by_seed in results.items():
        if not by_seed:
            continue
        runs = list(by_seed.values())
        # Seeds share the order of problems, so that much of the noise cancels in differences.
        seeds = [seed for seed in by_seed if seed in first]
        differences = [by_seed[seed].gain - first[seed].gain for seed in seeds]
        cells = [
            name,
            f"{len(runs)}",
            _cell([run.after for run in runs], "{:.3f}"),
            _cell([run.gain for run in runs], "{:+.3f}"),
            "" if by_seed is first else _cell(differences, "{:+.3f}"),
            _cell([run.tokens for run in runs], "{:,.0f}"),
            _cell([run.gain / run.tokens * 1e6 for run in runs], "{:.3f}"),
            f"{np.mean([run.clipped for run in runs]):.2%}",
            _cell([run.words for run in runs], "{:.3f}"),
            f"{np.mean([run.entropy for run in runs]):.3f}",
            f"{np.mean([run.seconds for run in runs]):.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: Sequence[float], form: str) -> str:
    """Returns "mean ± half width", or the mean of a single value."""
    if not values:
        return ""
    mean, half = interval(values)
    text = form.format(mean)
    if math.isnan(half):
        return text
    # A half width has no sign.
    return f"{text} ± {form.replace('+', '').format(half)}"
