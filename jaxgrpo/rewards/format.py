r"""Is the completion laid out as asked? `<think> ... </think> ... \boxed{answer}`."""

from jaxgrpo.problems import Problem
from jaxgrpo.rewards.math import boxes


def think_then_answer(problem: Problem, text: str) -> float:
    r"""1.0 if the text is one think block and then one answer, else 0.0.

    One `<think>`, before which there is nothing but space; one `</think>` after it; and after that exactly one
    `\boxed{...}`, balanced and not empty. What the block and the box say does not matter here.
    """
    if text.count("<think>") != 1 or text.count("</think>") != 1 or not text.lstrip().startswith("<think>"):
        return 0.0
    answer = text.partition("</think>")[2]
    found = boxes(answer)
    return float(answer.count(r"\boxed") == len(found) == 1 and bool(found[0][1].strip()))
