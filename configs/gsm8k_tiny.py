"""GRPO on GSM8K with the embedded model, to see the way through: it solves next to none of these
problems.

    python -m jaxgrpo.train --config configs/gsm8k_tiny.py --config.data.path=train.jsonl \
        --config.steps=3

Without a path, TFDS downloads GSM8K. A path's last 256 rows are held out unless data.heldout_path
names a file.

Lengths and learning rate are the embedded model's. For another one there are other configs, such as
gsm8k_qwen2_5_0_5b_v5e1.

Hardware: 2 CPU cores. Time: about 1 minute for 3 steps. Expect: accuracy near 0, so the band keeps
next to nothing and the refill ends at its bound; what is trained on then differs in its format and
language.
"""

from jaxgrpo.config import Batch, Config, Evaluation, Filter, Optimizer, Sampling
from jaxgrpo.data.gsm8k import GSM8K
from jaxgrpo.losses import GRPO
from jaxgrpo.problems import Weighted
from jaxgrpo.rewards import languages, layout, maths


def get_config() -> Config:
    return Config(
        out="out/gsm8k_tiny",
        data=GSM8K(),
        rewards={
            "accuracy": Weighted(maths.accuracy, 1.0),
            "format": Weighted(layout.think_then_answer, 0.1),
            "language": Weighted(languages.target_word_ratio, 0.3),
        },
        steps=20,
        objective=GRPO(kl=0.001),
        batch=Batch(groups=4, group_size=4, micro_batch=8),
        sampling=Sampling(
            prompt_width=400, max_new_tokens=96
        ),  # 99 % of the prompts; the longest has 722 tokens
        filter=Filter(rule="band", low=0.2, high=0.8, max_prompts=2.0),
        optimizer=Optimizer(learning_rate=1e-4, warmup_steps=2),
        evaluation=Evaluation(problems=16, samples=2),
        show_rollouts_every=1,
    )
