"""Looks at the gold answers of a data set before a run, which a wrong column would spoil."""

import json

from jaxgrpo.problems import Problem, Problems, Task
from jaxgrpo.rewards.maths.normalization import normalize
from jaxgrpo.rewards.maths.quantities import parse_quantity
from jaxgrpo.rewards.maths.sets import parse_composite
from jaxgrpo.rewards.maths.symbolic import is_formula
from jaxgrpo.rewards.maths.units import split_unit
from jaxgrpo.rewards.maths.verifier import (
    MAX_ANSWER_LENGTH,
    Accuracy,
    accuracy,
    gold_answers,
)

MAX_CHECKED = 10_000
"""Problems that are looked at."""

_MAX_SHOWN = 60
"""Characters of an answer that are shown."""


def notes_on_golds(task: Task, heldout: Problems) -> list[str | None]:
    """Returns a line as `note_on_golds` for the training and the held-out answers.

    There is none where another reward than `accuracy` says what is solved.
    """
    reward = task.rewards[task.solved_by].function
    if reward is not accuracy and not isinstance(reward, Accuracy):
        return []
    return [
        note_on_golds(task.problems, "training"),
        note_on_golds(heldout, "held-out"),
    ]


def note_on_golds(problems: Problems, kind: str) -> str | None:
    """Returns a line that counts the answers that are no mathematics; None if fewer than half are.

    Answers in words are compared as text, so that some are to be expected.

    kind: "training" or "held-out", for the line
    """
    checked = min(len(problems), MAX_CHECKED)
    wordy: list[Problem] = []
    for i in range(checked):
        problem = problems[i]
        if not any(is_mathematical(answer) for answer in gold_answers(problem)):
            wordy.append(problem)
        # The others are more than half, whatever is still to come.
        if 2 * (i + 1 - len(wordy)) > checked:
            return None
    if not wordy:
        return None
    first = "the first " if checked < len(problems) else ""
    shown = wordy[0].answer[:_MAX_SHOWN]
    if len(wordy[0].answer) > _MAX_SHOWN:
        shown += " ..."
    return (
        f"{len(wordy):,} of {first}{checked:,} {kind} answers are no number or formula, and are "
        f"compared as text; {wordy[0].id}: {json.dumps(shown, ensure_ascii=False)}"
    )


def is_mathematical(answer: str) -> bool:
    """Returns whether an answer is a number, a formula, or several of them."""
    if len(answer) > MAX_ANSWER_LENGTH:
        return False
    answer = normalize(answer)
    if parse_quantity(answer) is not None:
        return True
    parts = parse_composite(answer)
    if parts is not None:
        return all(map(is_mathematical, parts.parts))
    formula, _ = split_unit(answer)
    return is_formula(formula)
