"""jaxgrpo: reinforcement learning of reasoning language models with verifiable rewards, in JAX.

Importing the package imports nothing heavy; import what you need: `from jaxgrpo import losses`.
"""

__version__ = "0.1.0"
