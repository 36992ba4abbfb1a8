"""The inputs and objectives that the tests of losses share."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrpo import losses
from jaxgrpo.losses import TokenInputs

P, G, T = 2, 4, 6
B = P * G

VARIANTS = {
    "grpo": losses.GRPO(kl=0.1),
    "dr_grpo": losses.DrGRPO(budget=8.0),
    "dapo": losses.DAPO(),
    "dapo_overlong": losses.DAPO(max_tokens=6.0, overlong_buffer=4.0),
    "gspo": losses.GSPO(0.2, 0.2),
    "gspo_token": losses.GSPOToken(0.2, 0.2),
    "rloo": losses.RLOO(kl=0.1),
    "reinforce++": losses.ReinforcePlusPlus(kl=0.1),
    "reinforce++baseline": losses.ReinforcePlusPlusBaseline(kl=0.1),
    "cispo": losses.CISPO(clip_low=0.5, clip_high=0.5),
    "ppo": losses.PPO(),
    "ppo_dual": losses.PPO(dual_clip=3.0),
    "regularised": losses.Regularised(
        losses.DAPO(), kl=0.1, estimator="unbiased", entropy=0.01
    ),
    "regularised_k2": losses.Regularised(
        losses.DrGRPO(budget=8.0), kl=0.1, estimator="k2"
    ),
    "corrected": losses.Corrected(losses.GRPO(kl=0.1), high=1.1),
    "corrected_mask": losses.Corrected(
        losses.GSPO(), mode="mask", level="sequence", high=1.3, low=0.7
    ),
    "corrected_geometric": losses.Corrected(
        losses.DAPO(), mode="mask", level="geometric", high=1.05, low=0.95
    ),
    "maxrl": losses.MaxRL(),
    "dppo": losses.DPPO(threshold=0.05),
    "dppo_kl": losses.DPPO(threshold=0.02, divergence="kl", budget=8.0),
    "scale_rl": losses.ScaleRL(group_size=G, max_ratio=1.2),
    "off_policy_masked": losses.OffPolicyMasked(losses.DAPO(), threshold=0.05),
    "trust_region_masked": losses.TrustRegionMasked(losses.DAPO(), threshold=0.4),
    "trust_region_mean": losses.TrustRegionMasked(
        losses.DAPO(), threshold=0.04, criterion="mean"
    ),
    "top_entropy": losses.TopEntropy(losses.DAPO(), fraction=0.5),
    "entropy_targeted": losses.EntropyTargeted(
        losses.DAPO(), weight=0.01, max_weight=0.02
    ),
    "distilled": losses.Distilled(losses.DAPO(), weight=0.5),
}
"""All variants, with their terms switched on."""

BY_PROMPT = ("scale_rl",)
"""The variants whose token weights are of prompts: the rows of a prompt must stay together."""

BY_MICRO_BATCH = ("top_entropy",)
"""The variants whose token loss depends on the other rows of a micro-batch."""

CLIPPING = (
    "grpo",
    "dr_grpo",
    "dapo",
    "ppo",
    "gspo",
    "gspo_token",
    "reinforce++",
    "reinforce++baseline",
    "maxrl",
)
"""The variants that clip as PPO does, at 0.2 or 0.28."""


def make_inputs(
    seed: int = 0, log_ratio: float | None = 0.0, width: int = T
) -> TokenInputs:
    """Returns random log-probabilities of B rows of 0 to width tokens.

    log_ratio: log(policy / old) at every token; None: random
    """
    rng = np.random.default_rng(seed)
    shape = (B, width)
    logprobs = -rng.uniform(0.1, 3, shape)
    lengths = np.array([1, width, 0, *rng.integers(1, width, B - 3)])
    if log_ratio is None:
        log_ratio = rng.normal(0, 0.3, shape)
    old = logprobs - log_ratio
    arrays = {
        "logprobs": logprobs,
        "old_logprobs": old,
        "ref_logprobs": logprobs + rng.normal(0, 0.3, shape),
        "advantages": rng.normal(0, 1, B),
        "sampler_logprobs": old + rng.normal(0, 0.1, shape),
        "entropy": rng.uniform(0, 2, shape),
    }
    return TokenInputs(
        **{name: jnp.asarray(array, jnp.float32) for name, array in arrays.items()},
        mask=jnp.arange(width) < lengths[:, None],
    )


@jax.jit
def loss_of(objective, inputs):
    """Computes the loss of a batch."""
    return losses.batch_loss(objective, objective.token_weights(inputs.mask), inputs)[0]


@jax.jit
def gradient(objective, inputs):
    """Computes the gradient of the loss for the policy's log-probabilities, [B, T]."""

    def loss(logprobs):
        return loss_of(objective, inputs._replace(logprobs=logprobs))

    return jax.grad(loss)(inputs.logprobs)


@jax.jit
def metrics_of(objective, inputs):
    """Computes the reported metrics of a batch."""
    _, info = losses.batch_loss(objective, objective.token_weights(inputs.mask), inputs)
    return losses.report(info)


@jax.jit
def advantages_of(objective, rewards, inputs):
    """Computes advantages as [P, G, T], also where the objective has one a completion."""
    mask = inputs.mask.reshape(P, G, -1)
    kl = jnp.where(inputs.mask, inputs.old_logprobs - inputs.ref_logprobs, 0.0).reshape(
        P, G, -1
    )
    advantages = objective.advantages(rewards, mask, kl)
    if advantages.ndim == 2:
        advantages = advantages[..., None]
    return jnp.broadcast_to(advantages, kl.shape) * mask
