"""Writes TRL's own losses and gradients, and the inputs that gave them, to tests/golden/trl.json.

    python3 -m venv trl && trl/bin/pip install torch==2.13.0 trl==1.16.0 datasets accelerate peft
    trl/bin/python -m tools.golden_trl --out tests/golden/trl.json

Nothing of TRL is written again here. The trainers are real, and only what a model would do is
replaced: the completions, and their log-probabilities. Masks, corrections, normalisers and
advantages come from `_generate_and_score_completions`, losses from `compute_loss`, gradients with
respect to the log-probabilities from autograd.

Covered: GRPO, BNPO, DAPO, Dr. GRPO, CISPO, GSPO (sequence ratios) and RLOO, off and on policy; the
KL plain and multiplied by the ratio (`use_bias_correction_kl`); clip ranges that differ; `delta`;
the four corrections for a sampler that is not the trainer; truncated completions left out; bad
completions far off policy left out (`off_policy_mask_threshold`); tokens of high entropy alone
(`top_entropy_quantile`); two iterations with a batch
(`num_iterations=2`); and the advantages that each trainer makes of rewards.
Not covered: losses that are not ours (SAPO, LUSPO, VESPO), the entropy bonus, several reward
functions. TRL 1.16 has no GSPO-token, MaxRL, DPPO or correction by a geometric mean.

The file's settings are TRL's arguments by their names, except for `trainer`, its class, and
`on_policy`: the old log-probabilities are the policy's own. Its numbers are of float64, from inputs
that are exact to four decimals; a missing reward is null.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tools.golden_trl_cases import (
    Inputs,
    Settings,
    advantage_settings,
    loss_settings,
    make_inputs,
    require_coverage,
)

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
"""The version of TRL whose methods are replaced below."""

RATE = 8.0
"""Learning rate of the descent between two iterations: ratios must leave the clip range."""

ITERATED = ("grpo", "grpo; kl", "dapo", "dr_grpo", "gspo", "cispo")
"""The losses of which two iterations are made."""

PAD, END, PROMPT, WORD = range(4)
"""The vocabulary."""


def main() -> None:
    """Writes the file that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("tests/golden/trl.json"))
    parser.add_argument(
        "--seed",
        type=int,
        default=30,
        help="of the inputs; this one's are not near an edge",
    )
    arguments = parser.parse_args()
    if not trl.__version__.startswith(f"{VERSION}."):
        print(
            f"golden_trl: needs trl {VERSION}, whose methods it replaces; this is "
            f"{trl.__version__}",
            file=sys.stderr,
        )
        raise SystemExit(2)

    # 1. Inputs that reach every branch of every loss. float64, so that rounding is TRL's own only
    # in the last digits.
    torch.set_default_dtype(torch.float64)
    inputs = make_inputs(arguments.seed)
    require_coverage(inputs)

    # 2. TRL's losses and advantages of them.
    loss_cases = []
    advantage_cases = []
    with tempfile.TemporaryDirectory() as folder:
        make_model(folder)
        for name, settings in loss_settings().items():
            results = loss(folder, settings, inputs)
            loss_cases.append({"name": name, "settings": settings, **results})
        two_updates = [
            {
                "name": name,
                "settings": loss_settings()[name],
                "rate": RATE,
                **iterations(folder, loss_settings()[name], inputs),
            }
            for name in ITERATED
        ]
        for name, (settings, rewards) in advantage_settings().items():
            advantage_cases.append(
                {
                    "name": name,
                    "settings": settings,
                    "rewards": rewards,
                    "advantages": advantages(folder, settings, inputs, rewards),
                }
            )

    # 3. The file that tests/losses/test_golden.py compares with.
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    text = to_text(inputs, loss_cases, two_updates, advantage_cases)
    arguments.out.write_text(text)
    kilobytes = arguments.out.stat().st_size / 1e3
    print(
        f"{arguments.out}: {len(loss_cases)} losses and {len(advantage_cases)} times advantages, "
        f"{kilobytes:.0f} kB"
    )


def loss(folder: str, settings: Settings, inputs: Inputs) -> dict[str, object]:
    """Returns TRL's loss, and its gradient for the policy's log-probabilities, [B][T]."""
    trainer = make_trainer(folder, settings, inputs, "mixed")
    batch = prepared_batch(trainer, inputs)
    batch["advantages"] = torch.tensor(inputs["advantages"])
    value = trainer.compute_loss(trainer.model, batch)
    (gradient,) = torch.autograd.grad(value, trainer.logprobs)
    # A sum with 0 has no -0.0.
    return {"loss": value.item(), "gradient": (gradient + 0.0).tolist()}


def iterations(folder: str, settings: Settings, inputs: Inputs) -> dict[str, object]:
    """Returns the losses of two iterations with a batch, and the log-probabilities after them.

    The log-probabilities are the parameters. They begin as the old ones and are moved by gradient
    descent, RATE times each gradient. TRL prepares the batch once, before the first iteration.
    """
    trainer = make_trainer(folder, settings, inputs, "mixed")
    # The first iteration is on policy: TRL takes the old log-probabilities from these.
    trainer.logprobs = torch.tensor(inputs["old_logprobs"], requires_grad=True)
    batch = prepared_batch(trainer, inputs)
    batch["advantages"] = torch.tensor(inputs["advantages"])
    losses = []
    for _ in range(trainer.num_iterations):
        value = trainer.compute_loss(trainer.model, batch)
        (gradient,) = torch.autograd.grad(value, trainer.logprobs)
        # Gradient descent alone: an optimizer's state would hide a wrong gradient.
        moved = trainer.logprobs.detach() - RATE * gradient
        trainer.logprobs = moved.requires_grad_()
        losses.append(value.item())
    return {"losses": losses, "logprobs": trainer.logprobs.tolist()}


def advantages(
    folder: str, settings: Settings, inputs: Inputs, rewards: str
) -> list[float]:
    """Returns TRL's advantages of the rewards of this name, one a row."""
    trainer = make_trainer(folder, settings, inputs, rewards)
    return prepared_batch(trainer, inputs)["advantages"].tolist()


def prepared_batch(trainer: "FixedCompletions", inputs: Inputs) -> dict:
    """Returns the batch that TRL makes of the completions, with their advantages."""
    prompts = [{"prompt": "prompt"}] * len(inputs["lengths"])
    return trainer._generate_and_score_completions(prompts)


class FixedCompletions:
    """Part of a trainer whose model does nothing: its completions and their scores are inputs."""

    # Parts of TRL's trainers, which are not installed where types are checked.
    model: Any
    ref_model: Any
    num_iterations: int
    compute_loss: Any
    _generate_and_score_completions: Any
    current_gradient_accumulation_steps: int
    use_vllm: object

    # The inputs.
    lengths: list[int]
    completions: tuple[list[list[int]], list[str]]
    logprobs: Any
    old_logprobs: Any
    ref_logprobs: Any
    entropies: Any
    sampler_logprobs: list[list[float]]

    def _get_per_token_logps_and_entropies(self, model, *arguments, **options):
        """Returns log-probabilities of the policy, the old policy or the reference, and entropies.

        With gradients it is the loss that asks. Without, it is the preparation of a batch, for the
        old policy's or the reference's.
        """
        if model is self.ref_model:
            logprobs = self.ref_logprobs
        elif torch.is_grad_enabled():
            logprobs = self.logprobs
        else:
            logprobs = self.old_logprobs
        return logprobs, self.entropies, None


class FixedGRPO(FixedCompletions, GRPOTrainer):
    """TRL's GRPO trainer with completions, and the sampler's scores of them, as inputs."""

    def _generate(self, prompts):
        sampler_logprobs = [
            row[:length]
            for row, length in zip(self.sampler_logprobs, self.lengths, strict=True)
        ]
        tokens, texts = self.completions
        return (
            [[PROMPT]] * len(prompts),
            tokens,
            None,
            texts,
            sampler_logprobs,
            {},
            None,
            None,
        )


class FixedRLOO(FixedCompletions, RLOOTrainer):
    """TRL's RLOO trainer with completions as inputs."""

    def _generate(self, prompts):
        return [[PROMPT]] * len(prompts), *self.completions


TRAINERS = {
    "GRPOTrainer": (FixedGRPO, GRPOConfig),
    "RLOOTrainer": (FixedRLOO, RLOOConfig),
}


def make_trainer(
    folder: str, settings: Settings, inputs: Inputs, rewards: str
) -> FixedCompletions:
    """Returns TRL's trainer with these settings, and the inputs put in."""
    trainer_class, config_class = TRAINERS[str(settings["trainer"])]
    on_policy = settings.get("on_policy", False)
    options = {
        name: value
        for name, value in settings.items()
        if name not in ("trainer", "on_policy", "use_vllm")
    }
    trainer = trainer_class(
        model=folder,
        reward_funcs=lambda **_: inputs["rewards"][rewards],
        train_dataset=Dataset.from_dict(
            {"prompt": ["prompt"] * len(inputs["lengths"])}
        ),
        args=config_class(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            report_to="none",
            per_device_train_batch_size=len(inputs["lengths"]),
            num_generations=inputs["group_size"],
            # With a second iteration TRL asks for the old log-probabilities; with one it takes the
            # policy's, detached.
            num_iterations=1 if on_policy else 2,
            **options,
        ),
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1  # as the training loop would set it
    # After the fact, for the argument would ask for vLLM itself; from here on only the correction
    # looks at it.
    trainer.use_vllm = settings.get("use_vllm", False)
    trainer.lengths = inputs["lengths"]
    trainer.sampler_logprobs = inputs["sampler_logprobs"]
    trainer.logprobs = torch.tensor(inputs["logprobs"], requires_grad=True)
    trainer.old_logprobs = torch.tensor(
        inputs["logprobs" if on_policy else "old_logprobs"]
    )
    trainer.ref_logprobs = torch.tensor(inputs["ref_logprobs"])
    trainer.entropies = torch.tensor(inputs["entropies"])
    tokens = completion_tokens(inputs)
    trainer.completions = (tokens, ["completion"] * len(tokens))
    return trainer


def completion_tokens(inputs: Inputs) -> list[list[int]]:
    """Returns each completion's tokens: words, and the end token unless it was truncated."""
    completions = []
    for length, truncated in zip(inputs["lengths"], inputs["truncated"], strict=True):
        last = WORD if truncated else END
        completions.append([WORD] * (length - 1) + [last])
    return completions


def make_model(folder: str) -> None:
    """Writes a Llama, as small as can be, and a tokenizer, without which there is no trainer.

    Neither is run.
    """
    words = {"<pad>": PAD, "<end>": END, "prompt": PROMPT, "word": WORD}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<pad>")),
        pad_token="<pad>",
        eos_token="<end>",
    )
    tokenizer.save_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=len(words),
        pad_token_id=PAD,
        eos_token_id=END,
        bos_token_id=None,
        hidden_size=4,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


def to_text(
    inputs: Inputs,
    loss_cases: list[dict],
    two_updates: list[dict],
    advantage_cases: list[dict],
) -> str:
    """Returns JSON with one line an input or a case."""
    arrays = (
        f"{json.dumps(name)}: {json.dumps(value)}" for name, value in inputs.items()
    )
    parts = [
        f' "trl": {json.dumps(trl.__version__)}',
        f' "torch": {json.dumps(torch.__version__)}',
        f' "inputs": {{\n{_indented_lines(arrays)}\n }}',
        f' "cases": [\n{_indented_lines(map(json.dumps, loss_cases))}\n ]',
        f' "iterations": [\n{_indented_lines(map(json.dumps, two_updates))}\n ]',
        f' "advantages": [\n{_indented_lines(map(json.dumps, advantage_cases))}\n ]',
    ]
    body = ",\n".join(parts)
    return f"{{\n{body}\n}}\n"


def _indented_lines(values: Iterable[str]) -> str:
    """Returns one indented line a value, with commas between them."""
    return ",\n".join(f"  {value}" for value in values)


if __name__ == "__main__":
    main()
