"""In which language is a text? The rewards of consistency.py, and what they are made of."""

from jaxgrpo.rewards.languages.consistency import (
    Match,
    Ratio,
    Threshold,
    english_word_ratio,
    target_word_ratio,
)

__all__ = ["Match", "Ratio", "Threshold", "english_word_ratio", "target_word_ratio"]
