"""Supervised fine-tuning on prompts with worked solutions, with reinforcement learning's update.

`sft(config)` yields each step's metrics; `python -m jaxgrpo.sft --config FILE` is the program.
"""

from jaxgrpo.sft.program import sft

__all__ = ["sft"]
