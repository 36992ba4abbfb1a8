"""Is the answer right? `accuracy` is the reward; the other files are what it is made of."""

from jaxgrpo.rewards.maths.verifier import Accuracy, accuracy

__all__ = ["Accuracy", "accuracy"]
