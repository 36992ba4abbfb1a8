"""Writes verl's own gradients and masks, and the inputs that gave them, to tests/golden/verl.json.

    python3 -m venv verl && verl/bin/pip install torch==2.13.0 verl==0.9.1
    verl/bin/python -m tools.golden_verl --out tests/golden/verl.json

Nothing of verl is written again here: losses are those that it has registered, gradients come from
autograd, and masks from its rollout correction.

Covered is what TRL has not: DPPO with its binary divergences, and which completions are left out by
bounds on the geometric mean of the ratio or by a trust region. Its numbers are of float64, from
inputs that are exact to four decimals.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

try:
    import torch
    import verl
    from verl.trainer.ppo.core_algos import get_policy_loss_fn
    from verl.trainer.ppo.rollout_corr_helper import compute_rollout_rejection_mask
    from verl.workers.config import ActorConfig
except ImportError as missing:
    print(
        f"golden_verl: {missing}; pip install torch==2.13.0 verl==0.9.1",
        file=sys.stderr,
    )
    raise SystemExit(2) from None

LENGTHS = [7, 1, 5, 3, 6, 2, 4, 7]
ADVANTAGES = [1.2, -0.7, 0.4, -0.9, 0.8, -1.3, 0.0, -0.6]
"""One of each row, a completion."""

THRESHOLDS = {"tv": (0.15, 0.05), "kl": (0.05, 0.01)}
"""Thresholds of DPPO's divergences: the authors', and one that stops more tokens."""

BOUNDS = [(0.9, 1.2), (0.8, 1.25), (0.95, 1.05)]
"""Bounds of the geometric mean of a completion's ratios."""

REGIONS = {"max": (0.5, 0.6), "mean": (0.05, 0.03)}
"""Thresholds of the trust region's criteria, in nats."""

Inputs = dict[str, list]
"""Log-probabilities are [B][T]."""


def main() -> None:
    """Writes the file that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("tests/golden/verl.json"))
    arguments = parser.parse_args()
    # So that rounding is verl's own only in the last digits.
    torch.set_default_dtype(torch.float64)
    inputs = make_inputs()
    cases = [
        {
            "divergence": divergence,
            "threshold": threshold,
            "gradient": dppo_gradient(divergence, threshold, inputs),
        }
        for divergence, thresholds in THRESHOLDS.items()
        for threshold in thresholds
    ]
    # verl's documentation bounds the geometric mean, its code the mean's inverse.
    masks = [
        {
            "low": low,
            "high": high,
            "kept": kept_rows("seq_mean_k1", f"{1 / high}_{1 / low}", inputs),
        }
        for low, high in BOUNDS
    ]
    # verl's k2 is log(ratio)^2 / 2: its largest is that of the largest |log(ratio)|.
    regions = [
        {
            "criterion": "max",
            "threshold": threshold,
            "kept": kept_rows("seq_max_k2", str(threshold**2 / 2), inputs),
        }
        for threshold in REGIONS["max"]
    ] + [
        {
            "criterion": "mean",
            "threshold": threshold,
            "kept": kept_rows("seq_mean_k3", str(threshold), inputs),
        }
        for threshold in REGIONS["mean"]
    ]
    contents = {
        "verl": verl.__version__,
        "torch": torch.__version__,
        "inputs": inputs,
        "dppo": cases,
        "geometric": masks,
        "trust_region": regions,
    }
    lines = [f' "{name}": {json.dumps(value)}' for name, value in contents.items()]
    body = ",\n".join(lines)
    arguments.out.write_text(f"{{\n{body}\n}}\n", encoding="utf-8")
    print(
        f"{arguments.out}: {len(cases)} gradients and {len(masks) + len(regions)} masks"
    )


def make_inputs() -> Inputs:
    """Returns log-probabilities of rare and of frequent tokens, near the sampler's and far."""
    rng = np.random.default_rng(0)
    shape = (len(LENGTHS), max(LENGTHS))
    old = np.log(rng.uniform(0.02, 0.95, shape))
    drift = np.array([0.3, 0.12, 0.0, 0.005, -0.3, 0.02, -0.03, 0.06])[:, None]
    logprobs = old + drift + rng.normal(0.0, 0.3, shape)
    # Some rows move up, some down, some hardly: each mask lets some through and stops others.
    # Log-probabilities are below 0, and exact in the decimals that JSON holds.
    return {
        "lengths": LENGTHS,
        "advantages": ADVANTAGES,
        "logprobs": logprobs.clip(max=-0.01).round(4).tolist(),
        "old_logprobs": old.clip(max=-0.01).round(4).tolist(),
    }


def mask_of(inputs: Inputs) -> torch.Tensor:
    """Returns 1.0 at the tokens of each completion, [B, T]."""
    lengths = torch.tensor(inputs["lengths"])
    return (torch.arange(max(LENGTHS)) < lengths[:, None]).to(torch.float64)


def dppo_gradient(
    divergence: str, threshold: float, inputs: Inputs
) -> list[list[float]]:
    """Returns the gradient of verl's loss for the policy's log-probabilities, [B][T].

    The loss is the mean over completions of the sum over tokens.
    """
    config = ActorConfig(
        strategy="fsdp",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=1,
        clip_ratio=threshold,
        clip_ratio_low=threshold,
        clip_ratio_high=threshold,
        # The bound on the ratio is out of reach.
        clip_ratio_c=1e4,
    )
    logprobs = torch.tensor(inputs["logprobs"], requires_grad=True)
    mask = mask_of(inputs)
    loss, _ = get_policy_loss_fn(f"dppo_{divergence}")(
        old_log_prob=torch.tensor(inputs["old_logprobs"]),
        log_prob=logprobs,
        advantages=torch.tensor(inputs["advantages"])[:, None] * mask,
        response_mask=mask,
        loss_agg_mode="seq-mean-token-sum",
        config=config,
        rollout_is_weights=None,
    )
    (gradient,) = torch.autograd.grad(loss, logprobs)
    # A sum with 0 has no -0.0.
    return (gradient + 0.0).tolist()


def kept_rows(statistic: str, threshold: str, inputs: Inputs) -> list[bool]:
    """Returns whether verl keeps each completion, by this statistic of its ratios."""
    log_ratio = torch.tensor(inputs["logprobs"]) - torch.tensor(inputs["old_logprobs"])
    mask, _ = compute_rollout_rejection_mask(
        log_ratio=log_ratio,
        response_mask=mask_of(inputs),
        rollout_rs=statistic,
        rollout_rs_threshold=threshold,
    )
    return mask.any(dim=1).tolist()


if __name__ == "__main__":
    main()
