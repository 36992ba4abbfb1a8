"""The host's half of sampling: problems in, judged groups out, until the batch is full.

    order -> prompts -> steps.sample -> texts -> verifier pool -> difficulty filter -> groups

Groups are judged in the order in which they were asked. What is kept does therefore not depend on which finished first.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from jaxgrpo.mesh import to_device, to_host
from jaxgrpo.problems import Problem
from jaxgrpo.steps import Steps
from jaxgrpo.tokenizer import Tokenizer, left_padded
from jaxgrpo.types import Params, Prompts


@dataclass
class Group:
    """The G completions of one problem. Arrays are [G, T] on the host, as in types.Rollout."""

    problem: Problem
    texts: list[str]
    tokens: np.ndarray
    attention_mask: np.ndarray
    completion_mask: np.ndarray
    logprobs: np.ndarray
    finished: np.ndarray
    verdicts: list[dict] = field(default_factory=list)
    """For each completion, each reward's value; NaN where the verdict could not be had."""


@dataclass(frozen=True)
class Sampler:
    """Asks a policy: problems in, groups of texts out, a launch of `rows` rows at a time so that one program serves all."""

    steps: Steps
    tokenizer: Tokenizer
    prompt_width: int
    rows: int
    seed: int
    system: str = ""

    def __call__(
        self, params: Params, problems: Sequence[Problem], group_size: int, temperature: float, step: int, purpose: str
    ) -> list[Group]:
        """group_size completions of each problem, in one launch: at most rows // group_size problems."""
        places = self.rows // group_size
        if len(problems) > places:
            raise ValueError(f"{len(problems)} problems, but a launch has places for {places}")
        ids = [self.tokenizer.prompt(problem.prompt, self.system) for problem in problems]
        filler = [[]] * (places - len(problems))
        tokens, mask = left_padded(ids + filler, self.prompt_width, self.tokenizer.pad)
        keys = np.zeros((places, group_size, 2), np.uint32)
        for i, problem in enumerate(problems):
            keys[i] = [completion_key(self.seed, step, purpose, problem.id, sample) for sample in range(group_size)]
        prompts = to_device(Prompts(tokens, mask, keys), self.steps.rows)
        rollout = to_host(self.steps.sample(params, prompts, temperature))
        by_problem = [array.reshape(places, group_size, *array.shape[1:]) for array in rollout]
        return [
            Group(problem, self._texts(by_problem[0][i], by_problem[2][i]), *(array[i] for array in by_problem))
            for i, problem in enumerate(problems)
        ]

    def _texts(self, tokens: np.ndarray, completion_mask: np.ndarray) -> list[str]:
        return [self.tokenizer.decode(row[mask]) for row, mask in zip(tokens, completion_mask, strict=True)]


def completion_key(seed: int, step: int, purpose: str, problem: str, sample: int) -> np.ndarray:
    """Random key data UInt32[2] of one completion: a function of its arguments and of nothing that happened before."""
    text = f"{seed}/{step}/{purpose}/{problem}/{sample}"
    return np.frombuffer(hashlib.blake2b(text.encode(), digest_size=8).digest(), np.uint32)
