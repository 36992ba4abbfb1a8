"""A reward for timing. Worker processes import it: no jax here."""

import time
import zlib
from dataclasses import dataclass

from jaxgrpo.problems import Problem


@dataclass(frozen=True)
class Coin:
    """A reward that takes so many seconds for a completion, and is then 0.0 or 1.0 by a checksum.

    seconds: how long it sleeps
    """

    seconds: float

    def __call__(self, problem: Problem, text: str) -> float:
        time.sleep(self.seconds)
        return zlib.crc32(f"{problem.id} {text}".encode()) % 2.0
