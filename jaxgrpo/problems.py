"""Defines problems, completions, rewards and tasks: plain data of the host side, without jax."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

from jaxgrpo.errors import FixedFields, UserError
from jaxgrpo.text.language_codes import language_code
from jaxgrpo.text.messages import Message
from jaxgrpo.text.surrogates import replace_lone_surrogates


@dataclass(frozen=True)
class Problem:
    """One question with a verifiable answer.

    id: unique within a run and the same in every run. Randomness and visit counts are keyed by it.
    prompt: what the user says last, without any chat template.
    answer: the gold answer as text ("42").
    language: ISO 639-1 code of the language that the chain of thought should be in ("en", "zh").
      Other codes and names become that one: "pt-BR" is "pt", "Chinese (Simplified)" is "zh". A run
      refuses problems in a language that is not in `language_codes.LANGUAGE_CODES`.
    level: difficulty from 1 up; 0 where the data does not know it.
    meta: anything else that the data source or a reward needs. JSON values only, because it is
      sent to worker processes.
    context: messages that stand before the prompt, in their order: a system message, which takes
      the place of `config.system`, then turns of user and assistant, such as worked examples.
    """

    id: str
    prompt: str
    answer: str
    language: str = "en"
    level: int = 0
    meta: dict[str, Any] = field(default_factory=dict)
    context: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        # The class is frozen, so its own constructor has to set fields this way. A language without
        # a code stays as it is: the run's checks name it in their error.
        language = language_code(self.language) or self.language
        object.__setattr__(self, "language", language)
        for name in ("id", "prompt", "answer"):
            text = replace_lone_surrogates(getattr(self, name))
            object.__setattr__(self, name, text)


class Completion(str):
    """A str that the policy wrote, with two attributes that the text alone does not tell.

    tokens: number of tokens that the policy chose, the end token included.
    finished: whether it ended by itself; False if it was cut off.
    """

    tokens: int
    finished: bool

    def __new__(cls, text: str, tokens: int, finished: bool = True) -> "Completion":
        self = super().__new__(cls, text)
        self.tokens = tokens
        self.finished = finished
        return self

    def __reduce__(self) -> tuple[type["Completion"], tuple[str, int, bool]]:
        # Copies and pickles are made through __new__, which needs the attributes.
        return Completion, (str(self), self.tokens, self.finished)


OTHER_ANSWERS = "other_answers"
"""The field of Problem.meta that holds further gold answers: a list, any one of which is right."""

Problems = Sequence[Problem]
"""Random access: `len(problems)` and `problems[i]`. Cheap to index; not a list of everything."""

Reward = Callable[[Problem, str], float]
"""Scores one completion; the text is a `Completion`.

A module-level function of an importable module, or an instance of a dataclass of one, whose fields
are its settings: worker processes import it by name.
"""

BatchedReward = Callable[[Problem, list[Completion]], Sequence[float]]
"""Scores all completions of a problem in one call, a number for each; marked by `batched`."""

AnyReward = TypeVar("AnyReward", bound=Callable)


def batched(reward: AnyReward) -> AnyReward:
    """Marks a function, or a class whose instances are rewards, as a `BatchedReward`. A decorator.

    For rewards that are cheaper for many completions at once, such as those that ask a model
    server, and for rewards that compare completions with each other.
    """
    reward.batched = True  # type: ignore[attr-defined]
    return reward


def is_batched(reward: Callable) -> bool:
    """Returns whether `batched` marks the reward."""
    return getattr(reward, "batched", False) is True


@runtime_checkable
class Source(Protocol):
    """A source of problems, such as `config.data`. Both methods may raise UserError."""

    def train(self) -> Problems:
        """Returns the problems to train on."""
        ...

    def heldout(self) -> Problems:
        """Returns the problems to evaluate on, none of which is trained on."""
        ...


def notes_of(source: Source) -> list[str]:
    """Returns the lines that a run on a source begins with, once its problems are read.

    They are what the source's `notes()` returns. A source need not have that method.
    """
    notes: Callable[[], list[str]] = getattr(source, "notes", list)
    return notes()


@dataclass
class Weighted(FixedFields):
    """A reward and its weight in the sum from which advantages are computed.

    function: the reward
    weight: of its values in the sum
    """

    function: Reward | BatchedReward
    weight: float = 1.0

    def next_weight(
        self, step: int, previous_weight: float, mean_reward: float
    ) -> float:
        """Returns the weight at a step.

        step: from 1
        previous_weight: the weight at the step before
        mean_reward: mean over the completions of the step before, NaN if none has a verdict
        """
        return self.weight


@dataclass
class Scheduled(Weighted):
    """A reward whose weight goes linearly from `weight` at step 1 to `end` at step `steps`.

    end: the weight at step `steps` and ever after.
    steps: number of steps that the change takes, at least 2.
    """

    end: float = 0.0
    steps: int = 100

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise UserError(
                f"a scheduled weight takes steps={self.steps}: they must be at least 2, the first "
                "and the last"
            )

    def next_weight(
        self, step: int, previous_weight: float, mean_reward: float
    ) -> float:
        """Returns the weight at a step, from the schedule alone."""
        # From 0 at step 1 to 1 at step `steps`, and 1 ever after.
        progress = min(1.0, (step - 1) / (self.steps - 1))
        return self.weight + (self.end - self.weight) * progress


@dataclass
class Driven(Weighted):
    """A reward whose weight is driven by the reward's own mean, until that meets a target.

    The weight is the Lagrange multiplier of the constraint "mean >= target", found by dual ascent
    beside the policy (arXiv 1805.11074):

        weight <- weight + rate (target - mean), clipped to 0 .. max_weight

    `weight` is where it begins; a checkpoint holds its current value.

    target: the mean reward that is asked for.
    rate: step size of the dual ascent.
    max_weight: the largest weight.
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

    def next_weight(
        self, step: int, previous_weight: float, mean_reward: float
    ) -> float:
        """Returns the weight after one step of dual ascent from the previous one."""
        if math.isnan(mean_reward):
            # Without a verdict nothing is known of the constraint.
            return previous_weight
        weight = previous_weight + self.rate * (self.target - mean_reward)
        return min(self.max_weight, max(0.0, weight))


@dataclass(frozen=True)
class Task:
    """The problems to learn from, and how completions are judged.

    rewards: by name
    solved_by: name of the reward whose value 1.0 means that the problem is solved
    """

    problems: Problems
    rewards: dict[str, Weighted]
    solved_by: str
