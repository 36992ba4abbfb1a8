"""A reward whose verdict is a function of the text, and comes when it likes.

Worker processes import it: it must not import jax.
"""

import random
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Delayed:
    """1.0 for a text with an odd number of characters, between `least` and `most` seconds later."""

    least: float
    most: float

    def __call__(self, problem, completion) -> float:
        time.sleep(random.uniform(self.least, self.most))
        return float(len(completion) % 2)
