"""The completions of one problem: as they are asked for, as they end, sampled, and judged."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxgrpo.problems import Completion, Problem
from jaxgrpo.types import SamplingParams


@dataclass(frozen=True)
class SamplingRequest:
    """What a session samples of each problem.

    group_size: G, completions
    purpose: "training", "evaluation", ...: random numbers are a function of it
    stop: texts that end a completion. A text, its special tokens included, ends after the first
        one that it holds; what follows it in the same token stays.
    max_tokens: tokens of a completion, at most; None: all there is room for
    screened: rows of a group that start at first, the others once they are asked for; 0: all
    max_tokens_of: (problem, sample) -> the same for each completion, in the place of max_tokens
    """

    group_size: int
    sampling: SamplingParams
    purpose: str
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    max_tokens_of: Callable[[Problem, int], int] | None = None
    screened: int = 0


@dataclass(frozen=True)
class FinishedCompletion:
    """A completion that has ended, while others of its group may go on.

    index: its problem's, in the order in which problems were taken
    sample: its place in the group
    """

    index: int
    problem: Problem
    sample: int
    text: Completion


@dataclass(frozen=True)
class Group:
    """The G completions of one problem. Arrays are on the host, prompts padded on the left."""

    problem: Problem
    texts: list[Completion]
    tokens: Int[np.ndarray, "G T"]
    attention_mask: Bool[np.ndarray, "G T"]
    """True on prompt and completion tokens, the end token included."""
    completion_mask: Bool[np.ndarray, "G T"]
    """True on the tokens that the policy chose, the end token included."""
    logprobs: Float[np.ndarray, "G T"]
    """The sampler's own log-probability of each chosen token, at the sampling temperature; 0
    elsewhere."""
    policy_steps: Int[np.ndarray, "G T"]
    """The step whose policy chose each token; 0 elsewhere."""
    finished: Bool[np.ndarray, "G"]
    """Whether the row ended by itself."""


@dataclass(frozen=True)
class JudgedTexts:
    """The G completions of one problem as texts, with the verdicts of its rewards."""

    problem: Problem
    texts: list[Completion]
    values: dict[str, np.ndarray]
    """Each reward's values, float64 [G]; NaN where a verdict could not be had."""
    missing: dict[tuple[int, str], str]
    """The reason for each (row, reward) whose verdict could not be had."""
    rewards: Float[np.ndarray, "G"]
    """The weighted sum that advantages are made of; NaN where a part of it is missing."""
    solved: int
    """Completions that are right."""
    judged: int
    """Completions of which it is known whether they are right."""


@dataclass(frozen=True)
class JudgedGroup(Group, JudgedTexts):
    """A group with the verdicts of its rewards."""
