"""The inputs and the settings that `golden_trl.py` gives to TRL's trainers."""

from typing import TypedDict

import numpy as np

Settings = dict[str, object]
"""TRL's arguments by their names, and those that `golden_trl.py` adds."""


class Inputs(TypedDict):
    """The inputs of all losses, as they are written to JSON; a row is a completion."""

    group_size: int
    lengths: list[int]
    truncated: list[bool]
    advantages: list[float]
    logprobs: list[list[float]]
    old_logprobs: list[list[float]]
    ref_logprobs: list[list[float]]
    sampler_logprobs: list[list[float]]
    entropies: list[list[float]]
    rewards: dict[str, list[float | None]]
    """Rewards of the rows, by name; None: missing."""


GROUP_SIZE = 4
"""Completions of a prompt."""

COLUMNS = 7
"""Tokens of the longest completion."""

MAX_COMPLETION_LENGTH = 10
"""Above COLUMNS, so that a loss that divides by it (Dr. GRPO) differs from one by the longest."""

# A row each: two groups of four completions.
LENGTHS = [7, 1, 5, 3, 6, 2, 4, 7]
TRUNCATED = [True, False, False, False, False, True, False, False]
ADVANTAGES = [1.2, -0.7, 0.4, -0.9, 0.8, -1.3, 0.0, -0.6]
MEAN_LOG_RATIOS = [0.6, -0.5, -0.45, 0.5, 0.01, -0.02, 0.4, -0.4]
"""One of each row. With both signs of the advantage there are sequences below, within and above the
clip range, be their ratio of the mean (GSPO) or of the sum (RLOO)."""

# Two groups each: plain ones, one whose rewards are all equal, some that are missing.
REWARDS: dict[str, list[float | None]] = {
    "mixed": [1.0, 0.0, 0.0, 0.5, 0.25, 1.0, 1.0, -0.5],
    "equal": [0.1, 0.1, 0.1, 0.1, 1.0, 0.0, 0.0, 0.0],
    "missing": [1.0, None, 0.0, 0.5, None, None, 1.0, None],
}

# Parts of settings, which the cases below put together.
CLIP_HIGHER: Settings = {"epsilon": 0.2, "epsilon_high": 0.28}
KL: Settings = {"beta": 0.04}
KL_CORRECTED: Settings = {"beta": 0.04, "use_bias_correction_kl": True}
TRUNCATED_MASKED: Settings = {"mask_truncated_completions": True}
ON_POLICY: Settings = {"on_policy": True}
SEQUENCES: Settings = {"loss_type": "grpo", "importance_sampling_level": "sequence"}
# The losses that TRL has and we have, under the names that the tests use.
VARIANTS: dict[str, Settings] = {
    "grpo": {"loss_type": "grpo"},
    "grpo, clip higher": {"loss_type": "grpo", **CLIP_HIGHER},
    "bnpo": {"loss_type": "bnpo", **CLIP_HIGHER},
    "dapo": {"loss_type": "dapo", **CLIP_HIGHER},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.28},
    "cispo, high": {"loss_type": "cispo", "epsilon_high": 5.0},
    "gspo": {**SEQUENCES, **CLIP_HIGHER},
    "gspo, the paper's range": {**SEQUENCES, "epsilon": 3e-4, "epsilon_high": 4e-4},
}
MODES = ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
OFF_POLICY_MASKED: Settings = {"off_policy_mask_threshold": 0.3}
TOP_ENTROPY: Settings = {"top_entropy_quantile": 0.3}
# Settings that a case may change, written out, so that a TRL with other defaults is noticed. Of
# OFF_POLICY_MASKED and TOP_ENTROPY they stand in their own cases alone.
GRPO_DEFAULTS: Settings = {
    "trainer": "GRPOTrainer",
    "loss_type": "grpo",
    "importance_sampling_level": "token",
    "epsilon": 0.2,
    "epsilon_high": 0.2,
    "delta": None,
    "beta": 0.0,
    "use_bias_correction_kl": False,
    "max_completion_length": MAX_COMPLETION_LENGTH,
    "mask_truncated_completions": False,
    "on_policy": False,
    "use_vllm": False,
}
RLOO_DEFAULTS: Settings = {
    "trainer": "RLOOTrainer",
    "epsilon": 0.2,
    "epsilon_high": 0.2,
    "beta": 0.0,
    "mask_truncated_completions": False,
    "on_policy": False,
}


def make_inputs(seed: int) -> Inputs:
    """Returns the inputs of all losses; log-probabilities are [B][T], in four decimals.

    The old policy's are drawn first, then the policy's around them, and the reference's and the
    sampler's around those. Masked entries hold numbers like the others: what they hold must not
    matter.
    """
    rng = np.random.default_rng(seed)
    shape = (len(LENGTHS), COLUMNS)
    mask = np.arange(COLUMNS) < np.array(LENGTHS)[:, None]  # [B, T]
    noise = rng.normal(0.0, 0.8, shape)
    # The noise of a completion sums to 0, so that its mean log-ratio is that of MEAN_LOG_RATIOS.
    noise -= (noise * mask).sum(axis=1, keepdims=True) / mask.sum(axis=1, keepdims=True)
    old = rng.uniform(-5.0, -3.0, shape).round(4)
    logprobs = old + np.array(MEAN_LOG_RATIOS)[:, None] + noise

    def around(centre: np.ndarray, deviation: float) -> np.ndarray:
        return centre + rng.normal(0.0, deviation, shape)

    # Log-probabilities are negative, and exact in the decimals that JSON holds.
    def to_lists(array: np.ndarray) -> list[list[float]]:
        return array.clip(max=-0.01).round(4).tolist()

    return {
        "group_size": GROUP_SIZE,
        "lengths": LENGTHS,
        "truncated": TRUNCATED,
        "advantages": ADVANTAGES,
        "logprobs": to_lists(logprobs),
        "old_logprobs": to_lists(old),  # at most -3: the clip changes nothing
        "ref_logprobs": to_lists(around(logprobs, 0.5)),
        "sampler_logprobs": to_lists(around(old, 0.4)),
        # Drawn after all others, which are as they were before there were entropies.
        "entropies": rng.uniform(0.1, 4.0, shape).round(4).tolist(),
        "rewards": REWARDS,
    }


def require_coverage(inputs: Inputs) -> None:
    """Raises ValueError where a seed leaves a branch of some loss without a token or a sequence."""
    lengths = np.array(LENGTHS)
    mask = np.arange(COLUMNS) < lengths[:, None]
    policy = np.array(inputs["logprobs"])
    old = np.array(inputs["old_logprobs"])
    sampler = np.array(inputs["sampler_logprobs"])
    # What the losses clip: policy over old. What corrections cut: old over sampler.
    log_ratio = (policy - old) * mask
    log_correction = (old - sampler) * mask
    advantages = np.array(ADVANTAGES)
    # Ratios with the advantages that they are multiplied by: of sequences and of tokens.
    ratios = {
        "mean": (np.exp(log_ratio.sum(axis=1) / lengths), advantages),
        "sum": (np.exp(log_ratio.sum(axis=1)), advantages),
        "token": (np.exp(log_ratio)[mask], np.repeat(advantages, lengths)),
    }
    examples = {}
    for kind, (ratio, advantage) in ratios.items():
        for sign in (-1, 1):
            signed = ratio[np.sign(advantage) == sign]
            examples[f"{kind} {sign} below"] = signed < 0.8
            examples[f"{kind} {sign} within"] = (signed > 0.8) & (signed < 1.2)
            examples[f"{kind} {sign} above"] = signed > 1.28
    examples["cispo's high cap"] = np.exp(log_ratio)[mask] > 5.0
    corrections = {
        "token": np.exp(log_correction)[mask],
        "sequence": np.exp(log_correction.sum(axis=1)),
    }
    for kind, correction in corrections.items():
        examples[f"correction {kind} low"] = correction < 0.5
        examples[f"correction {kind} high"] = correction > 2.0
    divergence = ((sampler - policy) * mask).sum(axis=1) / lengths
    for sign in (-1, 1):
        signed = divergence[np.sign(advantages) == sign]
        examples[f"off policy {sign} near"] = signed < 0.3
        examples[f"off policy {sign} far"] = signed > 0.3
    missing = [name for name, is_example in examples.items() if not is_example.any()]
    if missing:
        raise ValueError(f"no example of {missing}: take another seed")


def loss_settings() -> dict[str, Settings]:
    """Returns the settings of all losses, by names that list what is not the default."""
    settings: dict[str, Settings] = {}
    for name, changes in {
        **_kl_changes(),
        **_other_changes(),
        **_sampler_changes(),
        **_masked_changes(),
    }.items():
        settings[name] = GRPO_DEFAULTS | changes
    settings["rloo"] = RLOO_DEFAULTS
    settings["rloo, clip higher"] = RLOO_DEFAULTS | CLIP_HIGHER
    settings["rloo; truncated masked"] = RLOO_DEFAULTS | TRUNCATED_MASKED
    settings["rloo; on policy"] = RLOO_DEFAULTS | ON_POLICY
    return settings


def _kl_changes() -> dict[str, Settings]:
    """Returns every variant without a KL, with it, and with it corrected."""
    # "corrected": the KL estimate is multiplied by the ratio, as TRL can do it.
    changes: dict[str, Settings] = {}
    for name, variant in VARIANTS.items():
        changes[name] = variant
        changes[f"{name}; kl"] = {**variant, **KL}
        changes[f"{name}; kl corrected"] = {**variant, **KL_CORRECTED}
    return changes


def _other_changes() -> dict[str, Settings]:
    """Returns variants with `delta`, without truncated completions, and on policy."""
    changes: dict[str, Settings] = {}
    for name in ("grpo, clip higher", "dapo", "gspo"):
        changes[f"{name}; delta"] = {**VARIANTS[name], "delta": 1.6}
    changes["grpo, clip higher; delta; kl corrected"] = {
        **VARIANTS["grpo, clip higher"],
        **KL_CORRECTED,
        "delta": 1.6,
    }
    for name in ("grpo", "bnpo", "dapo", "dr_grpo", "cispo", "gspo"):
        changes[f"{name}; truncated masked"] = {**VARIANTS[name], **TRUNCATED_MASKED}
        changes[f"{name}; on policy"] = {**VARIANTS[name], **ON_POLICY}
    changes["dapo; kl; truncated masked"] = {
        **VARIANTS["dapo"],
        **KL,
        **TRUNCATED_MASKED,
    }
    return changes


def _sampler_changes() -> dict[str, Settings]:
    """Returns variants with a correction for the sampler."""
    changes: dict[str, Settings] = {}
    for mode in MODES:
        changes[f"grpo; {mode}"] = {**VARIANTS["grpo"], **_correction(mode)}
        changes[f"grpo; {mode}; kl"] = {**VARIANTS["grpo"], **_correction(mode), **KL}
        changes[f"grpo; {mode} from below"] = {
            **VARIANTS["grpo"],
            **_correction(mode, 0.5),
        }
        changes[f"dapo; {mode}"] = {**VARIANTS["dapo"], **_correction(mode)}
    for name, mode in (
        ("dr_grpo", "token_truncate"),
        ("cispo", "token_truncate"),
        ("gspo", "sequence_truncate"),
        ("gspo", "sequence_mask"),
    ):
        changes[f"{name}; {mode}"] = {**VARIANTS[name], **_correction(mode)}
    changes["grpo; sequence_mask; kl corrected; truncated masked"] = {
        **VARIANTS["grpo"],
        **_correction("sequence_mask"),
        **KL_CORRECTED,
        **TRUNCATED_MASKED,
    }
    return changes


def _masked_changes() -> dict[str, Settings]:
    """Returns variants without bad sequences far off policy, and of high entropy alone."""
    grpo, dapo = VARIANTS["grpo"], VARIANTS["dapo"]
    return {
        "grpo; off policy masked": {**grpo, **OFF_POLICY_MASKED},
        "dapo; off policy masked; kl": {**dapo, **OFF_POLICY_MASKED, **KL},
        "grpo; off policy masked; on policy": {
            **grpo,
            **OFF_POLICY_MASKED,
            **ON_POLICY,
        },
        "grpo; off policy masked; token_truncate": {
            **grpo,
            **OFF_POLICY_MASKED,
            **_correction("token_truncate"),
        },
        "dapo; top entropy": {**dapo, **TOP_ENTROPY},
        "grpo; top entropy": {**grpo, **TOP_ENTROPY},
        "cispo; top entropy": {**VARIANTS["cispo"], **TOP_ENTROPY},
        "bnpo; top entropy; truncated masked": {
            **VARIANTS["bnpo"],
            **TOP_ENTROPY,
            **TRUNCATED_MASKED,
        },
    }


def _correction(mode: str, clip_min: float | None = None) -> Settings:
    """Returns the settings of a correction for the sampler, old / sampler.

    mode: truncates it at 2, or drops tokens or sequences beyond
    clip_min: does the same from below; None: does not
    """
    return {
        "use_vllm": True,
        "vllm_importance_sampling_correction": True,
        "vllm_importance_sampling_mode": mode,
        "vllm_importance_sampling_clip_min": clip_min,
        "vllm_importance_sampling_clip_max": 2.0,
    }


def advantage_settings() -> dict[str, tuple[Settings, str]]:
    """Returns by name the settings of advantages, and the name of the rewards they are made of."""
    rloo_defaults: Settings = {
        "trainer": "RLOOTrainer",
        "beta": 0.0,
        "normalize_advantages": False,
    }
    rloo_changes: dict[str, Settings] = {
        "": {},
        " kl": KL,
        " normalised": {"normalize_advantages": True},
    }
    settings: dict[str, tuple[Settings, str]] = {}
    for rewards in REWARDS:
        for scale in ("group", "batch", "none"):
            grpo: Settings = {"trainer": "GRPOTrainer", "scale_rewards": scale}
            settings[f"grpo {scale}; {rewards}"] = (grpo, rewards)
        for name, changes in rloo_changes.items():
            settings[f"rloo{name}; {rewards}"] = (rloo_defaults | changes, rewards)
    return settings
