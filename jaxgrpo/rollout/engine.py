"""The host's half of sampling: problems in, groups of texts out, with slots that do not idle.

    problems -> prefill -> insert into free slots -> decode -> harvest -> groups

A prompt is read once for its whole group. Rows start in whatever slots are free, each with its own
length. A call of `decode` comes back when a few rows have ended, or after a number of steps. Then
free slots are filled again and the next call is launched before anything is made of the texts: what
the host does, it does while the device decodes. Only stop strings are looked for between two calls,
since they decide which slots are free.
"""

import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import jax
import numpy as np

from jaxgrpo.distributed.mesh import device_bytes
from jaxgrpo.problems import Completion, Problem
from jaxgrpo.rollout.groups import FinishedCompletion, Group, SamplingRequest
from jaxgrpo.rollout.pending import PendingGroup, PendingRow, new_rows
from jaxgrpo.rollout.protocols import (
    DeviceState,
    Event,
    SamplingPrograms,
    SamplingUsage,
)
from jaxgrpo.rollout.screening import Screening
from jaxgrpo.rollout.warm_up import warm_up
from jaxgrpo.text.tokenizer import Tokenizer, pad_left
from jaxgrpo.types import DecodeOutput, Params


@dataclass(frozen=True)
class Engine:
    """Samples from a policy. One set of compiled programs serves training, evaluation and the rest.

    prompt_width: W, columns of a prompt
    new_tokens: N, tokens of a completion, at most
    system: a system message before every prompt; "": none
    """

    programs: SamplingPrograms
    tokenizer: Tokenizer
    prompt_width: int
    new_tokens: int
    seed: int
    system: str = ""

    def warm_up(self, params: Params) -> None:
        """Compiles every program that sampling can need.

        Those that every session calls are sealed: from then on a compile of theirs is an error.
        """
        # A prefill of empty prompts.
        no_prompts: list[list[int]] = [[]] * self.programs.prompts_per_prefill
        prompts = pad_left(no_prompts, self.prompt_width, self.tokenizer.pad_id)
        warm_up(self.programs, params, prompts)

    def session(
        self,
        params: Params,
        problems: Iterable[Problem],
        request: SamplingRequest,
        step: int,
    ) -> "SamplingSession":
        """Returns a session that samples a group of each problem, as slots become free.

        A text is a function of the request, the parameters and (seed, step, purpose, problem,
        sample), whatever slot it ran in; its logits may differ in rounding. The step is the one in
        which the problem was launched. The n-th time that a session asks a problem in a step, from
        0, its samples are n * group_size and those that follow.
        """
        return SamplingSession(self, params, problems, request, step)

    def __call__(
        self,
        params: Params,
        problems: Sequence[Problem],
        request: SamplingRequest,
        step: int,
    ) -> list[Group]:
        """Returns the groups of all problems, in their order."""
        groups = dict(self.session(params, problems, request, step).groups())
        return [groups[index] for index in range(len(groups))]


class SamplingSession:
    """Samples problems; to iterate over it is to sample, and yields what happens, in that order.

    It yields each completion as a FinishedCompletion, and (index, Group) once the last one of a
    group has ended; index counts problems as they were taken. It also yields None, once for each
    call of the device and while the device is busy, so that whoever iterates can do other work.
    The order of all items is a function of what was sampled, and of no clock.

    With `request.screened` so many rows of each group start, and the others once `decide` says so;
    or it says that they never do, and the group that comes has those rows alone.

    To stop early, stop iterating: what is in flight is forgotten. Or call `set_policy` and go on
    with the same iterator. To hold back problems, set `max_launched`: at that bound, rows that end
    leave their slots empty. Where no row is left, None comes with no call under way, again and
    again, until the bound is raised.
    """

    def __init__(
        self,
        engine: Engine,
        params: Params,
        problems: Iterable[Problem],
        request: SamplingRequest,
        step: int,
    ):
        self.launched = 0
        """Problems whose prompts have been read."""
        self.max_launched: int | None = None
        """Problems whose prompts may be read by now; None: all there are."""
        self._engine = engine
        self._programs = engine.programs
        self._request = request
        self._running: DecodeOutput | None = None
        """The output of the call of `decode` under way; None where there is none."""
        self._ended: list[PendingRow] = []
        """Rows that have ended, of which nothing has been made."""
        self.set_policy(params, step)
        self._problems = iter(problems)
        self._exhausted = False
        """Whether there are no more problems."""
        self._sampling = request.sampling.as_arrays()
        # The device's state, and what the host knows of each slot.
        self._slots = self._programs.slot_counts[0]
        self._ring_length = self._programs.ring_lengths[0]
        self._state = self._programs.empty_state(self._slots, self._ring_length)
        self._rows: list[PendingRow | None] = [None] * self._slots
        self._stopped = np.zeros(self._slots, bool)
        # Rows of the prompts that were prefilled last, with the place of their prompt there.
        self._waiting: deque[tuple[int, PendingRow]] = deque()
        self._prefilled: DeviceState = None
        self._screening = Screening()

    def set_policy(self, params: Params, step: int) -> None:
        """Has another policy sample from now on, and counts usage anew.

        What is in flight goes on with what it has: its tokens so far, and their keys, values and
        last hidden state as the earlier policy computed them (arXiv 2509.19128).
        """
        self.wait_for_call()
        self.usage = SamplingUsage()
        self._started_at = time.perf_counter()
        self._idle_since = self._started_at
        self._step = step
        self._key_name = f"{self._engine.seed}/{step}/{self._request.purpose}"
        self._times_asked: Counter[str] = Counter()
        self._params = None  # the earlier policy's copy makes room for this one's
        self._params = self._programs.publish(params)
        self.usage.weight_bytes = device_bytes(self._params)

    def groups(self) -> Iterator[tuple[int, Group]]:
        """Yields the groups alone."""
        return (event for event in self if isinstance(event, tuple))

    def __iter__(self) -> Iterator[Event | None]:
        while True:
            # 1. Rows start in free slots.
            self._fill_slots()
            # 2. The next call of decode begins.
            if any(self._rows):
                self._resize()
                self._launch_decode()
            elif self._exhausted and not self._screening.is_busy:
                break
            # 3. Meanwhile what the last call has ended is handed out, and the caller does its work.
            yield from self.take_events()
            yield None
            # 4. The call has ended, and its tokens are taken.
            self.wait_for_call()
        yield from self.take_events()

    def take_events(self) -> Iterator[Event]:
        """Yields the completions that have ended since the last time, and then the groups.

        Each is yielded once: iterate to the end. All texts come before the groups, so that all can
        be judged before anybody waits for one.
        """
        ended = self._ended
        self._ended = []
        for row in ended:
            text = self._engine.tokenizer.completion(row.tokens)
            row.text = Completion(text, len(row.tokens), row.finished)
            yield FinishedCompletion(
                row.group.index, row.group.problem, row.sample, row.text
            )
        complete = []
        for row in ended:
            row.group.num_unfinished -= 1
            if row.group.num_unfinished == 0:
                complete.append(row.group)
        engine = self._engine
        for group in self._screening.take_whole(complete):
            yield (
                group.index,
                group.to_group(
                    engine.prompt_width, engine.new_tokens, engine.tokenizer.pad_id
                ),
            )

    @property
    def is_idle(self) -> bool:
        """Returns whether no call is under way."""
        return self._running is None

    def decide(self, index: int, goes_on: bool) -> None:
        """Says whether the other rows of a group start, whose screened rows have all ended."""
        self._screening.decide(index, goes_on)

    def wait_for_call(self) -> None:
        """Waits for the call of `decode` under way, if there is one, and takes its tokens.

        They are the present policy's, so this comes before a change of the policy.
        """
        if self._running is None:
            return
        output = jax.device_get(self._running)
        self._running = None
        self._idle_since = time.perf_counter()
        self._ended += self._harvest(output)
        self.usage.seconds = time.perf_counter() - self._started_at

    def _fill_slots(self) -> None:
        """Starts rows in all free slots, as long as there are any."""
        # All waiting rows belong to the prompts that were prefilled last, because the next prompts
        # are read only when none waits.
        free = [slot for slot, row in enumerate(self._rows) if row is None]
        while free and (self._waiting or self._prefill_next()):
            count = min(len(free), len(self._waiting), self._programs.rows_per_insert)
            starting = []
            for _ in range(count):
                slot = free.pop(0)
                prompt, row = self._waiting.popleft()
                self._rows[slot] = row
                self._stopped[slot] = False
                starting.append((slot, prompt, row))
            self._grow_ring()
            rows = new_rows(
                starting, self._programs.rows_per_insert, no_slot=self._slots
            )
            self._state = self._programs.insert(self._state, self._prefilled, rows)

    def _prefill_next(self) -> bool:
        """Reads the next prompts; returns whether there were any that may be read."""
        # Groups that go on come first: they are older.
        groups = self._screening.take_continued(self._programs.prompts_per_prefill)
        count = self._programs.prompts_per_prefill - len(groups)
        if self.max_launched is not None:
            count = min(count, self.max_launched - self.launched)
        if count > 0:
            problems = list(islice(self._problems, count))
            self._exhausted = not problems
            groups += map(self._make_group, problems)
        if not groups:
            return False
        engine = self._engine
        prompts = [group.prompt for group in groups]
        # Shapes are fixed: at the end of the problems, empty prompts fill the call.
        missing = self._programs.prompts_per_prefill - len(groups)
        filler: list[list[int]] = [[]] * missing
        padded = pad_left(
            prompts + filler, engine.prompt_width, engine.tokenizer.pad_id
        )
        self._prefilled = self._programs.prefill(self._params, *padded)
        self.usage.prompt_tokens += sum(len(prompt) for prompt in prompts)
        for place, group in enumerate(groups):
            rows = group.start(self._request.screened)
            self._screening.note_start(group)
            self._waiting.extend((place, row) for row in rows)
        return True

    def _make_group(self, problem: Problem) -> PendingGroup:
        """Returns a group of rows that have not started."""
        engine = self._engine
        prompt = engine.tokenizer.prompt(
            problem.prompt, engine.system, problem.language, problem.context
        )
        group_size = self._request.group_size
        group = PendingGroup(
            index=self.launched,
            problem=problem,
            prompt=prompt,
            key_name=self._key_name,
            first_sample=self._times_asked[problem.id] * group_size,
        )
        self._times_asked[problem.id] += 1
        self.launched += 1
        for sample in range(group_size):
            group.rows.append(
                PendingRow(group, sample, self._max_tokens(problem, sample))
            )
        return group

    def _max_tokens(self, problem: Problem, sample: int) -> int:
        request = self._request
        new_tokens = self._engine.new_tokens
        if request.max_tokens_of is not None:
            return min(request.max_tokens_of(problem, sample), new_tokens)
        return min(request.max_tokens or new_tokens, new_tokens)

    def _resize(self) -> None:
        """Takes fewer slots where nothing more will start, and a ring long enough for a call."""
        num_rows = self._num_rows()
        while not self._has_more() and self._fewer_slots() >= num_rows:
            fewer = self._fewer_slots()
            # Slots with a row come first.
            order = sorted(
                range(self._slots), key=lambda slot: self._rows[slot] is None
            )[:fewer]
            self._state = self._programs.compact(self._state, np.array(order, np.int32))
            self._rows = [self._rows[slot] for slot in order]
            self._stopped = self._stopped[order]
            self._slots = fewer
        self._grow_ring()

    def _grow_ring(self) -> None:
        """Takes a ring that has room for all rows as they are after the next call."""
        chunk = self._programs.chunk
        needed = max(row.length_after(chunk) for row in self._rows if row)
        while needed > self._ring_length:
            longer = (n for n in self._programs.ring_lengths if n > self._ring_length)
            self._ring_length = min(longer)
            self._state = self._programs.grow(self._state, self._ring_length)

    def _has_more(self) -> bool:
        """Returns whether rows may start that have not."""
        return bool(
            self._waiting or not self._exhausted or self._screening.may_continue
        )

    def _num_rows(self) -> int:
        return sum(row is not None for row in self._rows)

    def _fewer_slots(self) -> int:
        """Returns the next smaller number of slots, 0 if there is none."""
        return max(
            (n for n in self._programs.slot_counts if n < self._slots), default=0
        )

    def _launch_decode(self) -> None:
        """Launches the next call of `decode`, without waiting for it.

        It comes back once a few rows have ended whose slots can be used again, at the end once
        fewer slots will do, and in any case after `chunk` steps: the ring has no more room.
        """
        num_rows = self._num_rows()
        # Rows end one after another. To come back for each would cost a launch a row, to wait for
        # many would leave their slots idle: a sixteenth is a compromise.
        leave_at = self._fewer_slots()
        if self._has_more():
            leave_at = num_rows - max(1, num_rows // 16)
        self._state, self._running = self._programs.decode(
            self._params,
            self._state,
            self._stopped,
            self._sampling,
            np.int32(self._programs.chunk),
            np.int32(leave_at),
        )
        self.usage.idle_seconds += time.perf_counter() - self._idle_since

    def _harvest(self, output: DecodeOutput) -> list[PendingRow]:
        """Takes the tokens of this policy's call, and returns the rows that have ended."""
        self.usage.slot_steps += int(output.num_steps) * self._slots
        self.usage.steps += int(output.num_steps)
        self.usage.tokens += int(output.num_tokens.sum())
        decode = self._engine.tokenizer.decode_all
        ended = []
        for slot, row in enumerate(self._rows):
            if row is None:
                continue
            # A row that a stop string cuts has tokens beyond it, which are dropped.
            count = int(output.num_tokens[slot])
            tokens = output.tokens[slot, :count].tolist()
            # Each token reads those before it and itself: half of the new ones, on average.
            length = len(row.group.prompt) + len(row.tokens)
            self.usage.context_tokens += count * (length + (count + 1) / 2)
            row.add(tokens, output.logprobs[slot, :count].tolist(), self._step)
            hit_stop = row.cut_at_stop(self._request.stop, decode)
            row.finished = hit_stop or bool(output.hit_eos[slot])
            if output.active[slot] and not row.finished:
                continue
            # The device learns of a row that the host has stopped with the next call.
            self._rows[slot] = None
            self._stopped[slot] = True
            ended.append(row)
        return ended
