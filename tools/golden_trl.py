"""Writes TRL's own losses and gradients, and the inputs that gave them, to tests/golden/trl.json.

    python3 -m venv trl && trl/bin/pip install torch==2.13.0 trl==1.16.0 datasets accelerate peft
    trl/bin/python -m tools.golden_trl --out tests/golden/trl.json

Nothing of TRL's is written again here. Real trainers are made, and of each only what a model would do is replaced: what it
generates and how probable it finds the tokens. Masks, corrections, normalisers and advantages come from
`_generate_and_score_completions`, losses from `compute_loss`, gradients with respect to the log-probabilities from autograd.

What is covered: GRPO, BNPO, DAPO, Dr. GRPO, CISPO, GSPO (sequence ratios) and RLOO, off and on policy; the KL plain and
multiplied by the ratio (`use_bias_correction_kl`); clip ranges that differ; `delta`; the four corrections for a sampler that is
not the trainer; truncated completions left out; and the advantages that each trainer makes of rewards.
What is not: losses that are not ours (SAPO, LUSPO, VESPO), `off_policy_mask_threshold`, `top_entropy_quantile`, the entropy
bonus, several reward functions. TRL 1.16 has no GSPO-token.

The file's settings are TRL's arguments by their names, except for `trainer`, its class, and `on_policy`: the old
log-probabilities are the policy's own. Its numbers are of float64, from inputs that are exact to four decimals; a missing
reward is null.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

try:
    import torch
    import transformers
    import trl
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
except ImportError as missing:
    print(
        f"golden_trl: {missing}; pip install torch==2.13.0 trl==1.16.0 datasets accelerate peft",
        file=sys.stderr,
    )
    raise SystemExit(2) from None

VERSION = "1.16"
"""Whose methods are replaced below."""

PAD, END, PROMPT, WORD = range(4)
"""The vocabulary."""

GROUP_SIZE, COLUMNS, LONGEST = 4, 7, 10
"""Completions of a prompt, the longest that there is, and `max_completion_length`, which is longer: Dr. GRPO divides by it."""

LENGTHS = [7, 1, 5, 3, 6, 2, 4, 7]
TRUNCATED = [True, False, False, False, False, True, False, False]
ADVANTAGES = [1.2, -0.7, 0.4, -0.9, 0.8, -1.3, 0.0, -0.6]
MEAN_LOG_RATIOS = [0.6, -0.5, -0.45, 0.5, 0.01, -0.02, 0.4, -0.4]
"""One of each row: with both signs of the advantage there are sequences below, within and above the clip range, be their ratio
the mean's (GSPO) or the sum's (RLOO)."""

REWARDS = {
    "mixed": [1.0, 0.0, 0.0, 0.5, 0.25, 1.0, 1.0, -0.5],
    "equal": [0.1, 0.1, 0.1, 0.1, 1.0, 0.0, 0.0, 0.0],
    "missing": [1.0, None, 0.0, 0.5, None, None, 1.0, None],
}

RANGE = {"epsilon": 0.2, "epsilon_high": 0.28}
CORRECTED = {"beta": 0.04, "use_bias_correction_kl": True}
SEQUENCES = {"loss_type": "grpo", "importance_sampling_level": "sequence"}
VARIANTS = {
    "grpo": {"loss_type": "grpo"},
    "grpo, clip higher": {"loss_type": "grpo", **RANGE},
    "bnpo": {"loss_type": "bnpo", **RANGE},
    "dapo": {"loss_type": "dapo", **RANGE},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.28},
    "cispo, high": {"loss_type": "cispo", "epsilon_high": 5.0},
    "gspo": {**SEQUENCES, **RANGE},
    "gspo, the paper's range": {**SEQUENCES, "epsilon": 3e-4, "epsilon_high": 4e-4},
}
MODES = ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
GRPO_SETTINGS = {
    "trainer": "GRPOTrainer",
    "loss_type": "grpo",
    "importance_sampling_level": "token",
    "epsilon": 0.2,
    "epsilon_high": 0.2,
    "delta": None,
    "beta": 0.0,
    "use_bias_correction_kl": False,
    "max_completion_length": LONGEST,
    "mask_truncated_completions": False,
    "on_policy": False,
    "use_vllm": False,
}
RLOO_SETTINGS = {
    "trainer": "RLOOTrainer",
    "epsilon": 0.2,
    "epsilon_high": 0.2,
    "beta": 0.0,
    "mask_truncated_completions": False,
    "on_policy": False,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("tests/golden/trl.json"))
    parser.add_argument(
        "--seed", type=int, default=30, help="of the inputs; this one's are not near an edge"
    )
    arguments = parser.parse_args()
    if not trl.__version__.startswith(f"{VERSION}."):
        print(
            f"golden_trl: needs trl {VERSION}, whose methods it replaces; this is {trl.__version__}",
            file=sys.stderr,
        )
        raise SystemExit(2)
    torch.set_default_dtype(torch.float64)
    inputs = make_inputs(arguments.seed)
    require_coverage(inputs)
    with tempfile.TemporaryDirectory() as folder:
        make_model(folder)
        cases = [
            {"name": name, "settings": s, **loss(folder, s, inputs)}
            for name, s in loss_settings().items()
        ]
        made = [
            {
                "name": name,
                "settings": s,
                "rewards": rewards,
                "advantages": advantages(folder, s, inputs, rewards),
            }
            for name, (s, rewards) in advantage_settings().items()
        ]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(to_text(inputs, cases, made))
    print(
        f"{arguments.out}: {len(cases)} losses and {len(made)} times advantages, {arguments.out.stat().st_size / 1e3:.0f} kB"
    )


def make_inputs(seed: int) -> dict[str, list]:
    """Log-probabilities [B][T] in four decimals: old, then the policy's, the reference's and the sampler's around it.

    Masked entries hold numbers like the others: what they hold must not matter.
    """
    rng = np.random.default_rng(seed)
    shape = len(LENGTHS), COLUMNS
    mask = np.arange(COLUMNS) < np.array(LENGTHS)[:, None]
    noise = rng.normal(0.0, 0.8, shape)
    noise -= (noise * mask).sum(axis=1, keepdims=True) / mask.sum(axis=1, keepdims=True)
    old = rng.uniform(-5.0, -3.0, shape).round(4)
    logprobs = old + np.array(MEAN_LOG_RATIOS)[:, None] + noise
    around = lambda centre, deviation: (centre + rng.normal(0.0, deviation, shape)).clip(max=-0.01)
    arrays = {
        "logprobs": logprobs.clip(max=-0.01),
        "old_logprobs": old,
        "ref_logprobs": around(logprobs, 0.5),
        "sampler_logprobs": around(old, 0.4),
    }
    rounded = {name: array.round(4).tolist() for name, array in arrays.items()}
    rows = {
        "group_size": GROUP_SIZE,
        "lengths": LENGTHS,
        "truncated": TRUNCATED,
        "advantages": ADVANTAGES,
    }
    return rows | rounded | {"rewards": REWARDS}


def require_coverage(inputs: dict[str, list]) -> None:
    """ValueError where a seed leaves a branch of some loss without a token or a sequence."""
    mask = np.arange(COLUMNS) < np.array(LENGTHS)[:, None]
    policy, old, sampler = (
        np.array(inputs[name]) for name in ("logprobs", "old_logprobs", "sampler_logprobs")
    )
    difference, correction = (policy - old) * mask, (old - sampler) * mask
    sequences = {"mean": difference.sum(axis=1) / np.array(LENGTHS), "sum": difference.sum(axis=1)}
    kinds = {kind: (np.exp(value), np.array(ADVANTAGES)) for kind, value in sequences.items()}
    kinds["token"] = np.exp(difference)[mask], np.repeat(ADVANTAGES, LENGTHS)
    found = {}
    for kind, (ratio, gain) in kinds.items():
        for sign in (-1, 1):
            same = ratio[np.sign(gain) == sign]
            found |= {
                f"{kind} {sign} below": same < 0.8,
                f"{kind} {sign} within": (same > 0.8) & (same < 1.2),
            }
            found[f"{kind} {sign} above"] = same > 1.28
    found["cispo's high cap"] = np.exp(difference)[mask] > 5.0
    for kind, ratio in {
        "token": np.exp(correction)[mask],
        "sequence": np.exp(correction.sum(axis=1)),
    }.items():
        found |= {f"correction {kind} low": ratio < 0.5, f"correction {kind} high": ratio > 2.0}
    missing = [name for name, where in found.items() if not where.any()]
    if missing:
        raise ValueError(f"no example of {missing}: take another seed")


def loss_settings() -> dict[str, dict]:
    """Names and settings of the losses. A name lists what is not the default."""
    cases = {}
    for name, variant in VARIANTS.items():
        cases |= {
            name: variant,
            f"{name}; kl": {**variant, "beta": 0.04},
            f"{name}; kl corrected": {**variant, **CORRECTED},
        }
    for name in ("grpo, clip higher", "dapo", "gspo"):
        cases[f"{name}; delta"] = {**VARIANTS[name], "delta": 1.6}
    cases["grpo, clip higher; delta; kl corrected"] = {
        **VARIANTS["grpo, clip higher"],
        **CORRECTED,
        "delta": 1.6,
    }
    for name in ("grpo", "bnpo", "dapo", "dr_grpo", "cispo", "gspo"):
        cases[f"{name}; truncated masked"] = {**VARIANTS[name], "mask_truncated_completions": True}
        cases[f"{name}; on policy"] = {**VARIANTS[name], "on_policy": True}
    cases["dapo; kl; truncated masked"] = {
        **VARIANTS["dapo"],
        "beta": 0.04,
        "mask_truncated_completions": True,
    }
    for mode in MODES:
        cases[f"grpo; {mode}"] = {**VARIANTS["grpo"], **sampler(mode)}
        cases[f"grpo; {mode}; kl"] = {**VARIANTS["grpo"], **sampler(mode), "beta": 0.04}
        cases[f"grpo; {mode} from below"] = {**VARIANTS["grpo"], **sampler(mode, 0.5)}
        cases[f"dapo; {mode}"] = {**VARIANTS["dapo"], **sampler(mode)}
    for name, mode in {
        "dr_grpo": "token_truncate",
        "cispo": "token_truncate",
        "gspo": "sequence_truncate",
    }.items():
        cases[f"{name}; {mode}"] = {**VARIANTS[name], **sampler(mode)}
    cases["gspo; sequence_mask"] = {**VARIANTS["gspo"], **sampler("sequence_mask")}
    cases["grpo; sequence_mask; kl corrected; truncated masked"] = {
        **VARIANTS["grpo"],
        **sampler("sequence_mask"),
        **CORRECTED,
        "mask_truncated_completions": True,
    }
    changes = {"": {}, ", clip higher": RANGE}
    changes |= {
        "; truncated masked": {"mask_truncated_completions": True},
        "; on policy": {"on_policy": True},
    }
    every = {name: GRPO_SETTINGS | settings for name, settings in cases.items()}
    return every | {f"rloo{name}": RLOO_SETTINGS | change for name, change in changes.items()}


def sampler(mode: str, lowest: float | None = None) -> dict:
    """A sampler's correction: old / sampler is truncated at, or dropped beyond, 2 and, where it is given, below `lowest`."""
    return {
        "use_vllm": True,
        "vllm_importance_sampling_correction": True,
        "vllm_importance_sampling_mode": mode,
        "vllm_importance_sampling_clip_min": lowest,
        "vllm_importance_sampling_clip_max": 2.0,
    }


def advantage_settings() -> dict[str, tuple[dict, str]]:
    """Names -> settings and which rewards."""
    cases = {}
    for rewards in REWARDS:
        for scale in ("group", "batch", "none"):
            cases[f"grpo {scale}; {rewards}"] = (
                {"trainer": "GRPOTrainer", "scale_rewards": scale},
                rewards,
            )
        for name, change in {
            "": {},
            " kl": {"beta": 0.04},
            " normalised": {"normalize_advantages": True},
        }.items():
            settings = {
                "trainer": "RLOOTrainer",
                "beta": 0.0,
                "normalize_advantages": False,
                **change,
            }
            cases[f"rloo{name}; {rewards}"] = settings, rewards
    return cases


def loss(folder: str, settings: dict, inputs: dict[str, list]) -> dict:
    """TRL's loss, and its gradient with respect to the policy's log-probabilities [B][T]."""
    trainer = make_trainer(folder, settings, inputs, "mixed")
    batch = prepared(trainer, inputs)
    batch["advantages"] = torch.tensor(inputs["advantages"])
    value = trainer.compute_loss(trainer.model, batch)
    (gradient,) = torch.autograd.grad(value, trainer.logprobs)
    return {"loss": value.item(), "gradient": (gradient + 0.0).tolist()}  # a sum with 0 has no -0.0


def advantages(folder: str, settings: dict, inputs: dict[str, list], rewards: str) -> list[float]:
    """What TRL makes of the rewards, a number a row."""
    trainer = make_trainer(folder, settings, inputs, rewards)
    return prepared(trainer, inputs)["advantages"].tolist()


def prepared(trainer: "Given", inputs: dict[str, list]) -> dict:
    return trainer._generate_and_score_completions([{"prompt": "prompt"}] * len(inputs["lengths"]))


class Given:
    """A trainer whose model does nothing: completions and log-probabilities are given."""

    def _get_per_token_logps_and_entropies(self, model, *arguments, **options):
        """With gradients it is the loss that asks; without, the preparation of a batch, for the old or the reference's."""
        if model is self.ref_model:
            found = self.ref_logprobs
        else:
            found = self.logprobs if torch.is_grad_enabled() else self.old_logprobs
        return found, torch.zeros_like(found), None


class GivenGRPO(Given, GRPOTrainer):
    def _generate(self, prompts):
        sampler = [
            row[:length] for row, length in zip(self.sampler_logprobs, self.lengths, strict=True)
        ]
        tokens, texts = self.completions
        return [[PROMPT]] * len(prompts), tokens, None, texts, sampler, {}, None, None


class GivenRLOO(Given, RLOOTrainer):
    def _generate(self, prompts):
        return [[PROMPT]] * len(prompts), *self.completions


TRAINERS = {"GRPOTrainer": (GivenGRPO, GRPOConfig), "RLOOTrainer": (GivenRLOO, RLOOConfig)}


def make_trainer(folder: str, settings: dict, inputs: dict[str, list], rewards: str) -> Given:
    """TRL's trainer with these settings, the inputs put in."""
    given, config = TRAINERS[settings["trainer"]]
    on_policy, use_vllm = settings.get("on_policy", False), settings.get("use_vllm", False)
    options = {
        name: value
        for name, value in settings.items()
        if name not in ("trainer", "on_policy", "use_vllm")
    }
    trainer = given(
        model=folder,
        reward_funcs=lambda **_: inputs["rewards"][rewards],
        train_dataset=Dataset.from_dict({"prompt": ["prompt"] * len(inputs["lengths"])}),
        args=config(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            report_to="none",
            per_device_train_batch_size=len(inputs["lengths"]),
            num_generations=inputs["group_size"],
            # With a second iteration TRL asks for the old log-probabilities; with one it takes the policy's, detached.
            num_iterations=1 if on_policy else 2,
            **options,
        ),
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1  # as the training loop would set it
    # After the fact, for the argument would ask for vLLM itself; from here on only the correction looks at it.
    trainer.use_vllm = use_vllm
    trainer.lengths, trainer.sampler_logprobs = inputs["lengths"], inputs["sampler_logprobs"]
    trainer.logprobs = torch.tensor(inputs["logprobs"], requires_grad=True)
    trainer.old_logprobs = torch.tensor(inputs["logprobs" if on_policy else "old_logprobs"])
    trainer.ref_logprobs = torch.tensor(inputs["ref_logprobs"])
    ends = zip(inputs["lengths"], inputs["truncated"], strict=True)
    tokens = [[WORD] * (length - 1) + [WORD if truncated else END] for length, truncated in ends]
    trainer.completions = tokens, ["completion"] * len(tokens)
    return trainer


def make_model(folder: str) -> None:
    """A Llama, as small as can be, and a tokenizer: a trainer cannot be made without. Neither is run."""
    words = {"<pad>": PAD, "<end>": END, "prompt": PROMPT, "word": WORD}
    fast = Tokenizer(WordLevel(words, unk_token="<pad>"))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=fast, pad_token="<pad>", eos_token="<end>"
    ).save_pretrained(folder)
    widths = {
        "hidden_size": 4,
        "intermediate_size": 4,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    shape = transformers.LlamaConfig(
        vocab_size=len(words), pad_token_id=PAD, eos_token_id=END, bos_token_id=None, **widths
    )
    transformers.LlamaForCausalLM(shape).save_pretrained(folder)


def to_text(inputs: dict[str, list], cases: list[dict], made: list[dict]) -> str:
    """JSON with an input or a case a line."""
    lines = lambda values: ",\n".join(f"  {value}" for value in values)
    arrays = lines(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in inputs.items())
    versions = (
        f' "trl": {json.dumps(trl.__version__)},\n "torch": {json.dumps(torch.__version__)},\n'
    )
    losses = f' "cases": [\n{lines(map(json.dumps, cases))}\n ],\n'
    return f'{{\n{versions} "inputs": {{\n{arrays}\n }},\n{losses} "advantages": [\n{lines(map(json.dumps, made))}\n ]\n}}\n'


if __name__ == "__main__":
    main()
