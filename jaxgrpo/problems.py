"""What the host side speaks of: problems, rewards, tasks. Plain data; no jax."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

from jaxgrpo.errors import UserError
from jaxgrpo.text.language_codes import language_code


@dataclass(frozen=True)
class Problem:
    """One question with a verifiable answer.

    id: unique within a run, the same in every run; randomness and visit counts are keyed by it.
    prompt: what the user says, without any chat template.
    answer: the gold answer as text ("42").
    language: ISO 639-1 code of the language that the chain of thought should be in ("en", "zh").
      Other codes and names become that one: "pt-BR" is "pt", "Chinese (Simplified)" is "zh". A run
      refuses problems in a language that is not of `language_codes.LANGUAGE_CODES`.
    level: difficulty from 1 up; 0 where the data does not know it.
    meta: whatever the data source or a reward needs besides; JSON values only, for it travels to worker processes.
    """

    id: str
    prompt: str
    answer: str
    language: str = "en"
    level: int = 0
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        language = language_code(self.language) or self.language
        object.__setattr__(self, "language", language)
        for name in ("id", "prompt", "answer"):
            object.__setattr__(self, name, whole_characters(getattr(self, name)))


def whole_characters(text: str) -> str:
    """Returns a text with U+FFFD for half a surrogate pair, which neither tokenizers nor UTF-8 take."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


class Completion(str):
    """What the policy wrote: a text that also knows what no text says.

    tokens: how many the policy chose, the end token included.
    finished: whether it ended by itself, not cut off.
    """

    tokens: int
    finished: bool

    def __new__(cls, text: str, tokens: int, finished: bool = True) -> "Completion":
        self = super().__new__(cls, text)
        self.tokens, self.finished = tokens, finished
        return self

    def __reduce__(self) -> tuple:  # a copy knows as much
        return Completion, (str(self), self.tokens, self.finished)


OTHER_ANSWERS = "other_answers"
"""The field of Problem.meta that holds further gold answers: a list, one of which is enough."""

Problems = Sequence[Problem]
"""Random access: `len(problems)` and `problems[i]`; cheap to index, never a list of everything."""

Reward = Callable[[Problem, str], float]
"""Scores one completion; the text is a `Completion`. A module-level function of an importable module, or an instance of a
dataclass of one, whose fields are its settings: worker processes import it by name."""

BatchedReward = Callable[[Problem, list[Completion]], Sequence[float]]
"""Scores all completions of a problem in one call, a number for each; marked by `batched`."""

Callee = TypeVar("Callee", bound=Callable)


def batched(reward: Callee) -> Callee:
    """A decorator: this function, or this class's instances, are rewards that take all completions of a problem at once.

    For what is cheaper together, such as asking a model server, and for what compares completions with each other.
    """
    reward.batched = True  # type: ignore[attr-defined]
    return reward


def is_batched(reward: Callable) -> bool:
    """Whether `batched` marks it."""
    return getattr(reward, "batched", False) is True


@runtime_checkable
class Source(Protocol):
    """Where problems come from; `config.data` is one. Both may raise UserError."""

    def train(self) -> Problems: ...

    def heldout(self) -> Problems: ...


@dataclass
class Weighted:
    """A reward and its weight in the sum that advantages are made of."""

    function: Reward | BatchedReward
    weight: float = 1.0

    def next_weight(self, step: int, last: float, measured: float) -> float:
        """The weight at a step. last: that of the step before, whose completions had this mean (NaN: no verdict)."""
        return self.weight


@dataclass
class Scheduled(Weighted):
    """A reward whose weight goes evenly from `weight` at the first step to `end` at step `steps`, and stays there."""

    end: float = 0.0
    steps: int = 100

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise UserError(
                f"a scheduled weight takes steps={self.steps}: they must be at least 2, the first and the last"
            )

    def next_weight(self, step: int, last: float, measured: float) -> float:
        return self.weight + (self.end - self.weight) * min(1.0, (step - 1) / (self.steps - 1))


@dataclass
class Driven(Weighted):
    """A reward whose weight is driven by its own mean, until that meets a target: a Lagrange multiplier of the constraint
    "mean >= target", found by dual ascent beside the policy (arXiv 1805.11074).

        weight <- weight + rate (target - mean), and never outside 0 .. max_weight

    `weight` is what it begins with. A checkpoint holds what it has become.
    """

    target: float = 1.0
    rate: float = 0.1
    max_weight: float = 10.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= self.max_weight or self.rate <= 0:
            raise UserError(
                f"a driven weight has weight={self.weight}, max_weight={self.max_weight} and "
                f"rate={self.rate}: it must hold 0 <= weight <= max_weight and rate > 0"
            )

    def next_weight(self, step: int, last: float, measured: float) -> float:
        return (
            last
            if math.isnan(measured)
            else min(self.max_weight, max(0.0, last + self.rate * (self.target - measured)))
        )


@dataclass(frozen=True)
class Task:
    """What is to be learned: problems, rewards by name, and the name of the reward whose value 1.0 means solved."""

    problems: Problems
    rewards: dict[str, Weighted]
    solved_by: str
