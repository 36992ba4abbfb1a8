"""GRPO on GSM8K with Qwen2.5-0.5B-Instruct on one TPU v5e chip, as Colab lends it.

    python -m jaxgrpo.train --config configs/gsm8k_qwen2_5_0_5b_v5e1.py \
        --config.model=PATH/TO/Qwen2.5-0.5B-Instruct

Without data.path, TFDS downloads GSM8K.

Hardware: 1 TPU v5e chip (v5e:1x1). Not yet run on it; `jaxgrpo plan` says: 12.67 of 15.75 GiB in an
update, and at least 5.8 s a step, whatever is done well. Expect: not known yet; accuracy before and
after is in OUT/summary.json.
"""

from jaxgrpo.config import (
    Batch,
    Compute,
    Config,
    Evaluation,
    Filter,
    Optimizer,
    Sampling,
)
from jaxgrpo.data.gsm8k import GSM8K
from jaxgrpo.losses import GRPO
from jaxgrpo.problems import Weighted
from jaxgrpo.rewards import layout, maths

SYSTEM = (
    "Reason step by step between <think> and </think>, then give the final answer in "
    "\\boxed{}."
)


def get_config() -> Config:
    return Config(
        out="out/gsm8k_qwen2_5_0_5b_v5e1",
        model="Qwen2.5-0.5B-Instruct",
        system=SYSTEM,
        data=GSM8K(),
        rewards={
            "accuracy": Weighted(maths.accuracy, 1.0),
            "format": Weighted(layout.think_then_answer, 0.1),
        },
        dtype="bfloat16",
        steps=200,
        objective=GRPO(kl=0.001),
        batch=Batch(groups=16, group_size=8, micro_batch=8),
        sampling=Sampling(prompt_width=256, max_new_tokens=512, slots=128),
        filter=Filter(rule="band", low=0.2, high=0.8, max_prompts=4.0),
        optimizer=Optimizer(
            learning_rate=1e-6, warmup_steps=10, state_dtype="bfloat16"
        ),  # else 14.3 GiB
        compute=Compute(scan_layers=True, remat="full"),
        evaluation=Evaluation(problems=256, samples=1),
    )
