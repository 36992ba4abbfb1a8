"""On-policy distillation of Qwen2.5-7B-Instruct into Qwen2.5-1.5B-Instruct on eight TPU v5e chips.

    python -m jaxgrpo.train --config configs/distill_qwen2_5_1_5b_v5e8.py \
        --config.model=PATH/TO/Qwen2.5-1.5B-Instruct --config.reference=PATH/TO/Qwen2.5-7B-Instruct

The student samples, and the teacher says of each token how likely it would have been. The rewards
are measured, and weigh nothing: with objective.reward_weight=1.0 they are added. No filter: what
every completion solves, or none, can be learned from, too. Without data.path, TFDS downloads GSM8K.

Hardware: 8 TPU v5e chips (v5e:2x4). Not yet run on it; see `jaxgrpo plan`. Expect: not known yet;
accuracy before and after is in OUT/summary.json, and policy/kl is the distance to the teacher.
"""

from jaxgrpo.config import (
    Batch,
    Compute,
    Config,
    Evaluation,
    Filter,
    Mesh,
    Optimizer,
    Sampling,
)
from jaxgrpo.data.gsm8k import GSM8K
from jaxgrpo.losses import GRPO, Distilled
from jaxgrpo.problems import Weighted
from jaxgrpo.rewards import layout, maths


def get_config() -> Config:
    return Config(
        out="out/distill_qwen2_5_1_5b_v5e8",
        model="Qwen2.5-1.5B-Instruct",
        reference="Qwen2.5-7B-Instruct",
        system="Reason step by step between <think> and </think>, then give the final answer in "
        "\\boxed{}.",
        data=GSM8K(),
        rewards={
            "accuracy": Weighted(maths.accuracy, 1.0),
            "format": Weighted(layout.think_then_answer, 0.1),
        },
        dtype="bfloat16",
        steps=200,
        objective=Distilled(GRPO(kl=0.0), weight=1.0, reward_weight=0.0),
        batch=Batch(groups=32, group_size=4, micro_batch=8),
        sampling=Sampling(prompt_width=256, max_new_tokens=512, slots=128),
        filter=Filter(rule="off"),
        optimizer=Optimizer(learning_rate=1e-6, warmup_steps=10),
        evaluation=Evaluation(problems=256, samples=1),
        mesh=Mesh(data=1, fsdp=-1),
        compute=Compute(scan_layers=True, remat="full"),
    )
