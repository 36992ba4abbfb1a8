"""Rows and groups that are being sampled, as the host keeps them."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt32

from jaxgrpo.problems import Completion, Problem
from jaxgrpo.rollout.groups import Group
from jaxgrpo.text.stops import StopSearch
from jaxgrpo.text.tokenizer import pad_left
from jaxgrpo.types import NewRows


@dataclass
class PendingRow:
    """A completion that is being sampled; `group` is the group that it belongs to."""

    group: "PendingGroup"
    sample: int
    """Its place in the group."""
    max_tokens: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    policy_steps: list[int] = field(default_factory=list)
    """The training step whose policy chose each token."""
    finished: bool = False
    """Whether it ended by itself, at an end token or a stop string."""
    text: Completion | None = None
    """None until it has ended."""
    stop_search: StopSearch | None = None
    """Made at the first search."""

    def add(self, tokens: list[int], logprobs: list[float], policy_step: int) -> None:
        """Appends tokens that the policy of one step chose."""
        self.tokens.extend(tokens)
        self.logprobs.extend(logprobs)
        self.policy_steps.extend([policy_step] * len(tokens))

    def length_after(self, count: int) -> int:
        """Returns the tokens of the row and its prompt, at most, once `count` more are chosen."""
        chosen = min(len(self.tokens) + count, self.max_tokens)
        return len(self.group.prompt) + chosen

    def cut_at_stop(
        self, stop: tuple[str, ...], decode: Callable[[Sequence[int]], str]
    ) -> bool:
        """Cuts the row after the token that completes the first stop string.

        Returns whether it holds one.
        """
        if not stop:
            return False
        # The search goes on where it stopped: a stop string may begin in one call of decode and
        # end in the next.
        if self.stop_search is None:
            self.stop_search = StopSearch(stop, decode)
        count = self.stop_search.first(self.tokens)
        if count is None:
            return False
        # The token that completes the stop string stays, with whatever follows within it.
        del self.tokens[count:]
        del self.logprobs[count:]
        del self.policy_steps[count:]
        return True


@dataclass
class PendingGroup:
    """A group whose rows are being sampled."""

    index: int
    """Its problem's, in the order in which problems were taken."""
    problem: Problem
    prompt: list[int]
    """Token ids."""
    key_name: str
    """Seed, step and purpose, for the rows' random keys. The step is the one of the launch."""
    first_sample: int
    """The number of its first row: a problem that is asked again in a step counts on."""
    num_unfinished: int = 0
    """Rows that have started and not ended yet."""
    num_started: int = 0
    """Rows that have started: the first ones."""
    rows: list[PendingRow] = field(default_factory=list)

    def start(self, screened: int) -> list[PendingRow]:
        """Returns the rows that start now: the screened ones first, all others the second time.

        screened: 0: all start at once
        """
        count = len(self.rows) if self.num_started else screened or len(self.rows)
        rows = self.rows[self.num_started :][:count]
        self.num_started += len(rows)
        self.num_unfinished += len(rows)
        return rows

    def to_group(self, prompt_width: int, new_tokens: int, pad_id: int) -> Group:
        """Returns the group of rows that have all ended."""
        # [G, W + N]; what no row fills is padding.
        shape = (len(self.rows), prompt_width + new_tokens)
        tokens = np.full(shape, pad_id, np.int32)
        logprobs = np.zeros(shape, np.float32)
        policy_steps = np.zeros(shape, np.int32)
        chosen = np.zeros(shape, bool)
        for i, row in enumerate(self.rows):
            columns = slice(prompt_width, prompt_width + len(row.tokens))
            tokens[i, columns] = row.tokens
            logprobs[i, columns] = row.logprobs
            policy_steps[i, columns] = row.policy_steps
            chosen[i, columns] = True
        # All rows have the same prompt.
        prompt, prompt_mask = pad_left([self.prompt], prompt_width, pad_id)  # [1, W]
        tokens[:, :prompt_width] = prompt
        attention_mask = chosen.copy()
        attention_mask[:, :prompt_width] = prompt_mask
        return Group(
            problem=self.problem,
            texts=[_text_of(row) for row in self.rows],
            tokens=tokens,
            attention_mask=attention_mask,
            completion_mask=chosen,
            logprobs=logprobs,
            policy_steps=policy_steps,
            finished=np.array([row.finished for row in self.rows]),
        )


def _text_of(row: PendingRow) -> Completion:
    assert row.text is not None  # rows that have all ended
    return row.text


def new_rows(
    starting: Sequence[tuple[int, int, PendingRow]], size: int, no_slot: int
) -> NewRows:
    """Returns the arrays of rows that start, filled up to `size` with rows that start in no slot.

    starting: (slot, place of the prompt among the prefilled ones, row)
    no_slot: a slot past the last
    """
    rows = NewRows(
        slot=np.full(size, no_slot, np.int32),
        prompt=np.zeros(size, np.int32),
        max_tokens=np.zeros(size, np.int32),
        keys=np.zeros((size, 2), np.uint32),
    )
    for i, (slot, prompt, row) in enumerate(starting):
        group = row.group
        rows.slot[i] = slot
        rows.prompt[i] = prompt
        rows.max_tokens[i] = row.max_tokens
        rows.keys[i] = completion_key(
            group.key_name, group.problem.id, group.first_sample + row.sample
        )
    return rows


def completion_key(name: str, problem: str, sample: int) -> UInt32[np.ndarray, "2"]:
    """Returns the random key data of one completion.

    It is a function of its arguments and of nothing that happened before.

    name: SEED/STEP/PURPOSE
    problem: its id
    """
    text = f"{name}/{problem}/{sample}"
    return np.frombuffer(
        hashlib.blake2b(text.encode(), digest_size=8).digest(), np.uint32
    )
