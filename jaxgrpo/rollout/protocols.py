"""What the rollout's stages need of each other, so that any of them can be faked in a test."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxgrpo.problems import Problem
from jaxgrpo.rollout.groups import FinishedCompletion, Group, SamplingRequest
from jaxgrpo.types import Params

Event = FinishedCompletion | tuple[int, Group]
"""A completion that has ended; or a group whose last completion has, after its index."""

DeviceState = Any
"""The sampler's state on the device, which the host only passes on."""


@runtime_checkable
class CompiledProgram(Protocol):
    """A compiled program that can be sealed against further compiles."""

    def __call__(self, *arguments: Any) -> Any: ...

    def seal(self) -> None:
        """Makes every further compile an error."""
        ...


@runtime_checkable
class SamplingPrograms(Protocol):
    """The compiled programs that an engine calls, as programs.SamplingPrograms documents them."""

    @property
    def publish(self) -> Callable[[Params], Params]:
        """Returns the function that copies a policy for decoding."""
        ...

    @property
    def prefill(self) -> CompiledProgram:
        """Returns the program that reads prompts."""
        ...

    @property
    def empty_state(self) -> Callable[[int, int], DeviceState]:
        """Returns the function that makes a state without rows."""
        ...

    @property
    def insert(self) -> CompiledProgram:
        """Returns the program that starts rows."""
        ...

    @property
    def decode(self) -> CompiledProgram:
        """Returns the program that chooses tokens."""
        ...

    @property
    def grow(self) -> Callable[[DeviceState, int], DeviceState]:
        """Returns the function that lengthens the ring cache."""
        ...

    @property
    def compact(self) -> CompiledProgram:
        """Returns the program that keeps fewer slots."""
        ...

    @property
    def slot_counts(self) -> tuple[int, ...]:
        """Returns the numbers of slots, from all to the fewest."""
        ...

    @property
    def ring_lengths(self) -> tuple[int, ...]:
        """Returns the lengths of the ring cache, up to the longest row."""
        ...

    @property
    def prompts_per_prefill(self) -> int:
        """Returns the number of prompts in a call of prefill."""
        ...

    @property
    def rows_per_insert(self) -> int:
        """Returns the number of rows in a call of insert."""
        ...

    @property
    def chunk(self) -> int:
        """Returns the tokens of a row in a call of decode, at most."""
        ...


@dataclass
class SamplingUsage:
    """Counts of what sampling by one policy took.

    tokens: those that were chosen, in all calls that have come back
    slot_steps: slots times steps of these calls
    steps: of these calls
    context_tokens: tokens that stood before each of `tokens` in its row, and itself, in all
    prompt_tokens: those of prompts that were read
    weight_bytes: of the published parameters, on each device
    seconds: from before the policy is published to the end of its last call that has come back
    idle_seconds: host seconds between two calls of decode, during which the device was idle
    """

    tokens: int = 0
    slot_steps: int = 0
    steps: float = 0.0
    context_tokens: float = 0.0
    prompt_tokens: int = 0
    weight_bytes: int = 0
    seconds: float = 0.0
    idle_seconds: float = 0.0


@runtime_checkable
class Session(Protocol):
    """The part of a SamplingSession that a stream needs."""

    launched: int
    max_launched: int | None
    usage: SamplingUsage

    def __iter__(self) -> Iterator[Event | None]: ...

    def set_policy(self, params: Params, step: int) -> None:
        """Has another policy sample from now on."""
        ...

    def take_events(self) -> Iterator[Event]:
        """Yields what has happened and was not told yet."""
        ...

    def wait_for_call(self) -> None:
        """Waits for the device's call under way."""
        ...

    @property
    def is_idle(self) -> bool:
        """Returns whether no call is under way."""
        ...

    def decide(self, index: int, goes_on: bool) -> None:
        """Says whether the other rows of a group start, or never do."""
        ...


@runtime_checkable
class SamplingEngine(Protocol):
    """The part of an Engine that a stream needs."""

    def session(
        self,
        params: Params,
        problems: Iterable[Problem],
        request: SamplingRequest,
        step: int,
    ) -> Session:
        """Returns a session that samples groups of the problems."""
        ...
