"""RLOO (arXiv 2402.14740)."""

from jaxtyping import Array, Bool, Float

from jaxgrpo.losses import advantages, token_weights
from jaxgrpo.losses.group_relative import GroupRelative
from jaxgrpo.losses.inputs import Coefficient, TokenInputs, TokenLoss
from jaxgrpo.losses.pytree import frozen_pytree


@frozen_pytree
class RLOO(GroupRelative):
    """REINFORCE leave-one-out (arXiv 2402.14740, equations 3 and 7).

    A whole completion is one action.

        R_i = r_i - kl * sum_t log(old_t / reference_t)
        A_i = R_i - mean of the group's other R
        loss = -1/rows sum_i A_i sum_t log policy_t

    It is for samples of the current policy: like the paper it has no ratio (well-known code clips
    one, as PPO does).

    kl: weight of the KL in the reward; the paper's beta (None: none)
    """

    has_ratio = False

    kl: Coefficient | None = None

    def advantages(
        self,
        rewards: Float[Array, "P G"],
        mask: Bool[Array, "P G T"] | None = None,
        kl: Float[Array, "P G T"] | None = None,
    ) -> Float[Array, "P G"]:
        """Returns R_i - the mean of the group's other R.

        Raises ValueError if there is a KL in the reward, and mask or kl is missing.
        """
        if self.kl is None:
            return advantages.leave_one_out(rewards)
        if mask is None or kl is None:
            raise ValueError(
                "RLOO with a KL in the reward: advantages() needs the completions' mask and kl"
            )
        rewards = advantages.reward_minus_sequence_kl(rewards, mask, kl, self.kl)
        return advantages.leave_one_out(rewards)

    def token_weights(self, mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
        """Returns 1 / rows at each token: the sum over tokens, the mean over completions."""
        return token_weights.per_budget(mask, 1.0)

    def token_loss(self, inputs: TokenInputs) -> TokenLoss:
        """Returns -A * log policy."""
        # The sum over tokens of log policy is the log-probability of the completion.
        return -inputs.advantages * inputs.logprobs, {}
