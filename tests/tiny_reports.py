"""Folders of runs that nobody made: what a run leaves, with metrics and completions of our own."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

HOSTILE = (
    "</script><img src=x onerror=\"document.title='owned'\"><!-- <b>",
    "\u2028 \x1b[31m & ' \" `${1}` \\",
    "half a pair: \ud83d",
)
"""Texts that would break a page, or command a terminal, if they were taken for more than text."""

MIXED = "사과는 모두 7개입니다. So we add the apples together. 답은 \\boxed{7}"
"""Korean, with six words of English and an answer."""


CONTEXT = [
    {"role": "system", "content": "Think step by step."},
    {"role": "user", "content": "What is 2 + 3?"},
    {"role": "assistant", "content": "\\boxed{5}"},
]
"""The messages before the prompts of all groups but a step's first."""


def make_run(
    out: Path,
    seed: int = 0,
    learning_rate: float = 1e-6,
    steps: int = 6,
    groups: int = 2,
    texts: Sequence[str] = (MIXED, "모릅니다"),
) -> Path:
    """Writes a run's folder; returns it.

    groups: of each step, the first of which is kept
    texts: the completions of each group; the first is right
    """
    out.mkdir(parents=True)
    config = {
        "seed": seed,
        "data": {"seed": seed + 7},
        "out": str(out),
        "solved_by": "accuracy",
        "rewards": {
            "accuracy": {
                "class": "jaxgrpo.problems:Weighted",
                "function": "jaxgrpo.rewards.maths.verifier:accuracy",
                "weight": 1.0,
            }
        },
        "optimizer": {"learning_rate": learning_rate},
    }
    (out / "config.json").write_text(json.dumps(config))
    (out / "summary.json").write_text(
        json.dumps(
            {"before": {"reward/accuracy": 0.25}, "after": {"reward/accuracy": 0.5}}
        )
    )
    metrics = [
        {
            "step": step,
            "reward/accuracy": 0.5 + 0.4 * math.sin(step + seed),
            "accuracy/ko": 0.25,
            "accuracy/en": 0.75,
            "language/ko/target_word_ratio": 0.9,
            "filter/kept": 0.5,
            "policy/kl": None if step == 2 else 0.01 * step,
            "policy/entropy": 1.0,
            "completion/tokens": 30.0 + step,
            "rollout/tokens_per_s": 1000.0,
        }
        for step in range(1, steps + 1)
    ]
    write_lines(out / "metrics.jsonl", metrics)
    rollouts = [
        {
            "step": step,
            "id": f"p{group}",
            "language": ("ko", "en")[group % 2],
            "level": group % 2 + 1,
            "context": [] if group == 0 else CONTEXT,
            "prompt": "민수는 사과가 몇 개 있습니까?",
            "completion": text,
            "answer": "7",
            "rewards": {"accuracy": float(sample == 0), "language/ratio": None},
            "solved": 1,
            "judged": len(texts),
            "sample": sample,
            "samples": len(texts),
            "reward": float(sample == 0),
            "tokens": 12,
            "finished": sample == 0,
            "advantage": None if group else 1.0 - 2.0 * (sample > 0),
            "kept": group == 0,
        }
        for step in range(1, steps + 1)
        for group in range(groups)
        for sample, text in enumerate(texts)
    ]
    write_lines(out / "rollouts.jsonl", rollouts)
    return out


def write_lines(path: Path, records: Sequence[dict]) -> None:
    """Writes JSON values one a line."""
    # Half a surrogate pair goes into JSON as an escape.
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
