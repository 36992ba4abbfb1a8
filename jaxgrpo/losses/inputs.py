"""The inputs and outputs of a token's loss.

Axes: B rows, one completion each; T tokens of a row.
"""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int

Coefficient = float | Float[Array, ""] | Int[Array, ""]
"""A scalar setting of an objective; a traced array inside a compiled program."""

TokenMetrics = dict[str, Float[Array, "B T"]]
"""Metrics of an objective's own, by name: one value a token, logged as means over chosen tokens."""

TokenLoss = tuple[Float[Array, "B T"], TokenMetrics]
"""The loss at each token, and the objective's own metrics."""


class TokenInputs(NamedTuple):
    """The arrays that a token's loss may depend on. Masked entries may hold anything."""

    logprobs: Float[Array, "B T"]
    """Log-probabilities under the policy being trained; they carry the gradient."""
    old_logprobs: Float[Array, "B T"]
    """The denominator of the importance ratio: log-probabilities under the policy that sampled, as
    the sampler computed them, or under the policy before the first update, as the trainer did."""
    ref_logprobs: Float[Array, "B T"]
    """Log-probabilities under the reference policy."""
    advantages: Float[Array, "B"] | Float[Array, "B T"]
    """One a row or one a token; `token_loss` sees [B, T]."""
    mask: Bool[Array, "B T"]
    """True at the tokens that the policy chose."""
    sampler_logprobs: Float[Array, "B T"] | None = None
    """Log-probabilities that the sampler computed, where `old_logprobs` are the trainer's.
    None: they are the same."""
    entropy: Float[Array, "B T"] | None = None
    """Entropy of the distribution each token was chosen from, in nats; it carries a gradient.
    None: not known."""

    @property
    def behaviour_logprobs(self) -> Float[Array, "B T"]:
        """The sampler's log-probabilities; the old ones, where they are the same."""
        if self.sampler_logprobs is None:
            return self.old_logprobs
        return self.sampler_logprobs
