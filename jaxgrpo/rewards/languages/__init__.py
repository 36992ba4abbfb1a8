"""Language-consistency rewards (`consistency`), and the identification of languages behind them."""

from jaxgrpo.rewards.languages.consistency import (
    Match,
    Ratio,
    Threshold,
    english_word_ratio,
    target_word_ratio,
)

__all__ = ["Match", "Ratio", "Threshold", "english_word_ratio", "target_word_ratio"]
