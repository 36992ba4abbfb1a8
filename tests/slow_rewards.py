"""A reward whose verdict is a function of the text, but comes at a random time.

Worker processes import it: it must not import jax.
"""

import random
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Delayed:
    """A reward: 1.0 for a text with an odd number of characters, else 0.0, after a random delay.

    min_seconds, max_seconds: bounds of the delay
    """

    min_seconds: float
    max_seconds: float

    def __call__(self, problem, completion) -> float:
        time.sleep(random.uniform(self.min_seconds, self.max_seconds))
        return float(len(completion) % 2)
