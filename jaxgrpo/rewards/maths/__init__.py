"""Rewards for right answers: `accuracy`, and `Accuracy` with settings.

extraction.py      finds the final answer in a completion
normalization.py   removes differences of typography, and reads the number styles of languages
quantities.py      reads numbers and compares them exactly
units.py           separates and converts units
sets.py            reads tuples, sets, lists, intervals and unions
symbolic.py        compares formulas by computer algebra
verifier.py        compares two answers by all of these
golds.py           looks at a data set's gold answers before a run
"""

from jaxgrpo.rewards.maths.verifier import Accuracy, accuracy

__all__ = ["Accuracy", "accuracy"]
