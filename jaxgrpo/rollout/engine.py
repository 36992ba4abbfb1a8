"""The host's half of sampling: problems in, groups of texts out, with slots that do not idle.

    problems -> prefill -> insert into free slots -> decode -> harvest -> groups

A prompt is read once for its whole group. Rows start in whatever slots are free, each with its own length; a call of `decode`
comes back when a few of them have ended. Then their slots are filled again and the next call is under way before anything is
made of the texts: what the host does, it does while the device decodes.
"""

import hashlib
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import jax
import numpy as np

from jaxgrpo.problems import Completion, Problem
from jaxgrpo.text.stops import StopSearch
from jaxgrpo.text.tokenizer import Tokenizer, pad_left
from jaxgrpo.types import Params


@dataclass
class Group:
    """The G completions of one problem. Arrays are [G, T] on the host, with the prompt padded on the left."""

    problem: Problem
    texts: list[Completion]
    tokens: np.ndarray
    attention_mask: np.ndarray
    """True on prompt and completion tokens, the end token included."""
    completion_mask: np.ndarray
    """True on the tokens that the policy chose, the end token included."""
    logprobs: np.ndarray
    """The sampler's own log-probability of each chosen token, at the sampling temperature; 0 elsewhere."""
    written: np.ndarray
    """Int: the step whose policy chose each token; 0 elsewhere."""
    finished: np.ndarray
    """Bool[G]: whether the row ended by itself."""
    values: dict[str, np.ndarray] = field(default_factory=dict)
    """Each reward's verdicts, float64 [G]; NaN where one could not be had."""
    missing: dict[tuple[int, str], str] = field(default_factory=dict)
    """Why, for each (row, reward) whose verdict could not be had."""
    rewards: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """The weighted sum [G] that advantages are made of; NaN where a part of it is missing."""
    solved: int = 0
    judged: int = 0


@dataclass(frozen=True)
class FinishedCompletion:
    """A completion that has ended, while others of its group may go on. index: its problem's, in the order of asking."""

    index: int
    problem: Problem
    sample: int
    text: Completion


@dataclass(frozen=True)
class Draw:
    """How completions are drawn: the fields of sampler.How, stop strings, and the most tokens (0: all there is room for).

    A text, its special tokens included, ends after the first stop string that it holds; what follows
    it in the same token stays.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    min_tokens: int = 0
    max_tokens: int = 0
    stop: tuple[str, ...] = ()


@dataclass
class SamplingUsage:
    """Counts what sampling took, by one policy.

    tokens: those that were chosen, in all calls that have come back
    computed: slots times steps of these calls
    seconds: from before the policy is published to the end of its last call that has come back
    waited: those of them between a call's end, as the host learned of it, and the next launch
    """

    tokens: int = 0
    computed: int = 0
    seconds: float = 0.0
    waited: float = 0.0


@dataclass
class _PendingRow:
    group: "_Making"
    sample: int
    limit: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    written: list[int] = field(default_factory=list)
    ended: bool = False
    search: StopSearch | None = None
    text: Completion = field(default_factory=lambda: Completion("", 0))


@dataclass
class _PendingGroup:
    """A group whose rows are being written."""

    index: int
    problem: Problem
    prompt: list[int]
    name: str
    """Seed, step and purpose, for the rows' random keys. The step is the one of the launch."""
    first_sample: int
    """The number of the first row's sample: a problem that is asked again in a step counts on."""
    rows: list[_PendingRow]
    unfinished: int


@dataclass(frozen=True)
class Engine:
    """Asks a policy. One set of compiled programs serves training, evaluation and everything else."""

    steps: Any
    """A steps.Steps."""
    tokenizer: Tokenizer
    prompt_width: int
    new_tokens: int
    seed: int
    system: str = ""

    def warm_up(self, params: Params) -> None:
        """Compiles every program that sampling can need, and seals them: whatever comes, nothing compiles from then on."""
        steps = self.steps
        published = steps.publish(params)
        prompts = pad_left([[]] * steps.prompts, self.prompt_width, self.tokenizer.pad_id)
        prefilled = steps.prefill(published, *prompts)
        nowhere = _starts([], steps.starts, steps.sizes[0])
        for ring in steps.rings:
            slots = steps.insert(steps.empty(steps.sizes[0], ring), prefilled, nowhere)
            for size in steps.sizes:
                if size < steps.sizes[0]:
                    slots = steps.compact(slots, np.arange(size, dtype=np.int32))
                halt = np.ones(size, bool)
                slots, _ = steps.decode(
                    published, slots, halt, _how(Draw()), np.int32(0), np.int32(0)
                )
                for longer in [other for other in steps.rings if other > ring][:1]:
                    steps.grow(steps.empty(size, ring), longer)
        for program in (steps.prefill, steps.insert, steps.decode, steps.compact):
            program.seal()

    def wave(
        self,
        params: Params,
        problems: Iterable[Problem],
        group_size: int,
        draw: Draw,
        step: int,
        purpose: str,
        limits: Callable[[Problem, int], int] | None = None,
    ) -> "SamplingSession":
        """Groups of group_size completions of each problem, as they become ready. Problems are taken as slots become free.

        limits: (problem, sample) -> the most tokens of that completion, at most new_tokens (None: draw.max_tokens for all).
        A text is a function of the parameters and of (seed, step, purpose, problem, sample), whatever slot it ran in.
        The step is the one in which the problem was launched. The n-th time that a problem is
        asked in a step, from 0, its samples are n * group_size and those that follow.
        """
        most = draw.max_tokens or self.new_tokens
        return SamplingSession(
            self, params, problems, group_size, draw, step, purpose, limits or (lambda *_: most)
        )

    def __call__(
        self,
        params: Params,
        problems: Sequence[Problem],
        group_size: int,
        draw: Draw,
        step: int,
        purpose: str,
    ) -> list[Group]:
        """The groups of all problems, in their order."""
        found = dict(self.wave(params, problems, group_size, draw, step, purpose).groups())
        return [found[index] for index in range(len(found))]

    def build(self, made: _PendingGroup) -> Group:
        """A group of rows that are all finished."""
        size, width = len(made.rows), self.prompt_width + self.new_tokens
        tokens = np.full((size, width), self.tokenizer.pad_id, np.int32)
        logprobs = np.zeros((size, width), np.float32)
        written = np.zeros((size, width), np.int32)
        chosen = np.zeros((size, width), bool)
        for i, row in enumerate(made.rows):
            own = slice(self.prompt_width, self.prompt_width + len(row.tokens))
            tokens[i, own], logprobs[i, own], written[i, own], chosen[i, own] = (
                row.tokens,
                row.logprobs,
                row.written,
                True,
            )
        padded, mask = pad_left([made.prompt], self.prompt_width, self.tokenizer.pad_id)
        tokens[:, : self.prompt_width] = padded
        attended = chosen.copy()
        attended[:, : self.prompt_width] = mask
        texts = [row.text for row in made.rows]
        finished = np.array([row.ended for row in made.rows])
        return Group(made.problem, texts, tokens, attended, chosen, logprobs, written, finished)


class SamplingSession:
    """An iterator over what happens, in the order in which it does: each completion as it has `Ended`, and (index, Group) as
    the last one of a group has; index counts problems as they were taken.

    It also yields None, once a call of the device and while the device is busy, so that whoever
    iterates can look after other things. The order of all items is a function of what was sampled,
    and of no clock.

    To stop early, stop iterating: what is in flight is forgotten. Or `renew` the policy and go on with the same iterator.
    To hold back problems, set `max_launched`: at that bound, rows that end leave their slots empty.
    Where no row is left, None comes with no call under way, until the bound is raised.
    """

    def __init__(
        self,
        engine: Engine,
        params: Params,
        problems: Iterable[Problem],
        group_size: int,
        draw: Draw,
        step: int,
        purpose: str,
        limits: Callable[[Problem, int], int],
    ):
        self.launched = 0
        """Problems whose prompts have been read."""
        self.max_launched: int | None = None
        """Problems whose prompts may be read by now; None: all there are."""
        self._engine, self._steps, self._draw, self._limits = engine, engine.steps, draw, limits
        self._group_size, self._purpose = group_size, purpose
        self._running: Any = None
        """What the call of `decode` under way will have chosen; None where there is none."""
        self._ended: list[_PendingRow] = []
        """Rows that have ended, of which nothing has been made."""
        self.renew(params, step)
        self._problems = iter(problems)
        self._how = _how(draw)
        self._size, self._ring = self._steps.sizes[0], self._steps.rings[0]
        self._slots = self._steps.empty(self._size, self._ring)
        self._rows: list[_PendingRow | None] = [None] * self._size
        self._halt = np.zeros(self._size, bool)
        self._waiting: deque[tuple[int, _PendingRow]] = deque()
        self._prefilled: Any = None
        self._exhausted = False

    def renew(self, params: Params, step: int) -> None:
        """From now on another policy samples, and usage is counted anew. What is in flight goes on with what it has: its tokens
        so far, and their keys and values as the earlier policy computed them (arXiv 2509.19128)."""
        self.finish_call()
        self.usage = SamplingUsage()
        self._began = time.perf_counter()
        self._idle_since = self._began
        self._step = step
        self._name = f"{self._engine.seed}/{step}/{self._purpose}"
        self._asked: Counter[str] = Counter()
        self._params = None  # the earlier policy's copy makes room for this one's
        self._params = self._steps.publish(params)

    def groups(self) -> Iterator[tuple[int, Group]]:
        """Of what happens the groups alone."""
        return (item for item in self if isinstance(item, tuple))

    def __iter__(self) -> Iterator[FinishedCompletion | tuple[int, Group] | None]:
        while True:
            self._admit()
            if any(self._rows):
                self._fit()
                self._launch()
            elif self._exhausted:
                break
            # From here on the device is busy, if anything may start: the time for everything else.
            yield from self.news()
            yield None
            self.finish_call()
        yield from self.news()

    def news(self) -> Iterator[FinishedCompletion | tuple[int, Group]]:
        """Takes what has happened and was not told yet; the iterator will not tell it again."""
        ended = self._ended
        self._ended = []
        return self._made_of(ended)

    def finish_call(self) -> None:
        """Waits for the call of `decode` under way, if there is one; it is this policy's."""
        if self._running is None:
            return
        chosen = jax.device_get(self._running)
        self._running = None
        self._idle_since = time.perf_counter()
        self._ended += self._harvest(chosen)
        self.usage.seconds = time.perf_counter() - self._began

    def _made_of(
        self, ended: list[_PendingRow]
    ) -> Iterator[FinishedCompletion | tuple[int, Group]]:
        """The texts of rows, then the groups that they were the last of."""
        for row in ended:
            row.text = Completion(
                self._engine.tokenizer.completion(row.tokens), len(row.tokens), row.ended
            )
            yield FinishedCompletion(row.group.index, row.group.problem, row.sample, row.text)
        for row in ended:
            row.group.unfinished -= 1
            if not row.group.unfinished:
                yield row.group.index, self._engine.build(row.group)

    def _admit(self) -> None:
        """Starts rows in all free slots, as long as there are any."""
        free = [slot for slot, row in enumerate(self._rows) if row is None]
        while free and (self._waiting or self._prefill()):
            count = min(len(free), len(self._waiting), self._steps.starts)
            begun = [(free.pop(0), *self._waiting.popleft()) for _ in range(count)]
            for slot, _, row in begun:
                self._rows[slot], self._halt[slot] = row, False
            starts = _starts(begun, self._steps.starts, self._size)
            self._slots = self._steps.insert(self._slots, self._prefilled, starts)

    def _prefill(self) -> bool:
        """Reads the next prompts; returns whether there were any that may be read."""
        count = self._steps.prompts
        if self.max_launched is not None:
            count = min(count, self.max_launched - self.launched)
        if count <= 0:
            return False
        problems = list(islice(self._problems, count))
        if not problems:
            self._exhausted = True
            return False
        engine = self._engine
        ids = [
            engine.tokenizer.prompt(problem.prompt, engine.system, problem.language)
            for problem in problems
        ]
        filler: list[list[int]] = [[]] * (self._steps.prompts - len(problems))
        prompts = pad_left(ids + filler, engine.prompt_width, engine.tokenizer.pad_id)
        self._prefilled = self._steps.prefill(self._params, *prompts)
        for source, (problem, prompt) in enumerate(zip(problems, ids, strict=True)):
            first_sample = self._asked[problem.id] * self._group_size
            self._asked[problem.id] += 1
            made = _PendingGroup(
                index=self.launched,
                problem=problem,
                prompt=prompt,
                name=self._name,
                first_sample=first_sample,
                rows=[],
                unfinished=self._group_size,
            )
            made.rows = [
                _PendingRow(made, i, min(self._limits(problem, i), engine.new_tokens))
                for i in range(self._group_size)
            ]
            self._waiting.extend((source, row) for row in made.rows)
            self.launched += 1
        return True

    def _fit(self) -> None:
        """Fewer slots where nothing more will start, and a ring that is long enough for the next call."""
        live = sum(row is not None for row in self._rows)
        while self._exhausted and not self._waiting and (fewer := self._fewer()) >= live:
            order = sorted(range(self._size), key=lambda slot: self._rows[slot] is None)[:fewer]
            self._slots = self._steps.compact(self._slots, np.array(order, np.int32))
            self._rows, self._halt, self._size = (
                [self._rows[slot] for slot in order],
                self._halt[order],
                fewer,
            )
        needed = max(
            min(len(row.tokens) + self._steps.chunk, row.limit) for row in self._rows if row
        )
        while needed > self._ring:
            self._ring = min(ring for ring in self._steps.rings if ring > self._ring)
            self._slots = self._steps.grow(self._slots, self._ring)

    def _fewer(self) -> int:
        """The next smaller number of slots, 0 if there is none."""
        return max((size for size in self._steps.sizes if size < self._size), default=0)

    def _launch(self) -> None:
        """Launches the next call of `decode`.

        It comes back once a few rows have ended whose slots can be used again, or, at the end,
        once fewer slots will do.
        """
        live = sum(row is not None for row in self._rows)
        refills = self._waiting or not self._exhausted
        leave_at = live - max(1, live // 16) if refills else self._fewer()
        self._slots, self._running = self._steps.decode(
            self._params,
            self._slots,
            self._halt,
            self._how,
            np.int32(self._steps.chunk),
            np.int32(leave_at),
        )
        self.usage.waited += time.perf_counter() - self._idle_since

    def _harvest(self, chosen: Any) -> list[_PendingRow]:
        """Takes the tokens of this policy's call, and returns the rows that have ended."""
        tokens, logprobs, n, live, ended, steps = chosen
        self.usage.computed += int(steps) * self._size
        self.usage.tokens += int(n.sum())
        over = []
        for slot, row in enumerate(self._rows):
            if row is None:
                continue
            row.tokens.extend(tokens[slot, : n[slot]].tolist())
            row.logprobs.extend(logprobs[slot, : n[slot]].tolist())
            row.written.extend([self._step] * int(n[slot]))
            row.ended = self._stopped(row) or bool(ended[slot])
            if live[slot] and not row.ended:
                continue
            self._rows[slot], self._halt[slot] = None, True
            over.append(row)
        return over

    def _stopped(self, row: _PendingRow) -> bool:
        """Whether the row holds a stop string; then cuts it after the token that completes the first."""
        if not self._draw.stop:
            return False
        if row.search is None:
            row.search = StopSearch(self._draw.stop, self._engine.tokenizer.decode_all)
        count = row.search.first(row.tokens)
        if count is None:
            return False
        del row.tokens[count:], row.logprobs[count:], row.written[count:]
        return True


def _how(draw: Draw) -> tuple[Any, ...]:
    """As sampler.How; of fixed types, for another type would be another program."""
    return (
        np.float32(draw.temperature),
        np.int32(draw.top_k),
        np.float32(draw.top_p),
        np.float32(draw.min_p),
        np.int32(draw.min_tokens),
    )


def _starts(
    begun: list[tuple[int, int, _PendingRow]], places: int, nowhere: int
) -> tuple[np.ndarray, ...]:
    """As sampler.Starts, from (slot, source, row), filled up with rows that start in no slot."""
    slot, source, limit = (np.full(places, value, np.int32) for value in (nowhere, 0, 0))
    keys = np.zeros((places, 2), np.uint32)
    for i, (at, which, row) in enumerate(begun):
        slot[i], source[i], limit[i] = at, which, row.limit
        made = row.group
        keys[i] = completion_key(made.name, made.problem.id, made.first_sample + row.sample)
    return slot, source, limit, keys


def completion_key(name: str, problem: str, sample: int) -> np.ndarray:
    """Random key data UInt32[2] of one completion: a function of its arguments and of nothing that happened before."""
    return np.frombuffer(
        hashlib.blake2b(f"{name}/{problem}/{sample}".encode(), digest_size=8).digest(), np.uint32
    )
