"""Cross-lingual collapse (arXiv 2506.05850): GRPO on translated GSM8K with Qwen2.5-1.5B-Instruct on
eight TPU v5e chips.

    python -m jaxgrpo.train --config configs/collapse_qwen2_5_1_5b_v5e8.py \
        --config.model=PATH/TO/Qwen2.5-1.5B-Instruct --config.data.path=gsm8k_ko.jsonl \
        --config.data.language=ko

The file has a translated question and its answer a line. There is no instruction, which would have
to be in a language; the last number counts as the answer where nothing marks one. The reward does
not look at the language; every step measures it (language/target_word_ratio,
language/english_word_ratio). --config.rewards.language.weight=0.3 counters the collapse.

Hardware: 8 TPU v5e chips (v5e:2x4). Not yet run on it; `jaxgrpo plan` says: 7.1 of 15.75 GiB a chip
in an update. The paper reports of this model, trained on Korean GSM8K alone, 94.0 % Korean words on
GSM8K, and 14.5 % with SimpleRL-Zoo mixed in; its GRPO settings are not known to us: those here are
our choice.
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
from jaxgrpo.data.table import Table
from jaxgrpo.losses import GRPO
from jaxgrpo.problems import Weighted
from jaxgrpo.rewards import languages, maths


def get_config() -> Config:
    return Config(
        out="out/collapse_qwen2_5_1_5b_v5e8",
        model="Qwen2.5-1.5B-Instruct",
        data=Table(),
        rewards={
            "accuracy": Weighted(
                maths.Accuracy(extract=("boxed", "hashes", "phrase", "number")), 1.0
            ),
            "language": Weighted(languages.target_word_ratio, 0.0),
        },
        dtype="bfloat16",
        steps=500,
        objective=GRPO(kl=0.001),
        batch=Batch(groups=32, group_size=8, micro_batch=64),
        sampling=Sampling(prompt_width=512, max_new_tokens=512, slots=256),
        filter=Filter(rule="off"),
        optimizer=Optimizer(learning_rate=1e-6, warmup_steps=10),
        evaluation=Evaluation(problems=256, samples=1),
        mesh=Mesh(data=1, fsdp=-1),
        compute=Compute(scan_layers=True, remat="full"),
    )
