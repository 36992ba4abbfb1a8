"""On-policy distillation of a better policy into the embedded model, on the embedded problems.

    python -m jaxgrpo.train --config configs/quickstart.py --config.steps=84 \
        --config.batch.updates=1 --config.optimizer.learning_rate=1e-4 \
        --config.optimizer.warmup_steps=4 --config.out=out/teacher
    python -m jaxgrpo.export --run out/teacher --to teacher
    python -m jaxgrpo.train --config configs/distill_tiny.py --config.reference=teacher

The first two commands make the teacher, which is right in 0.73 of the held-out problems. The
student samples, and the teacher says of each token how likely it would have been; the rewards are
measured, and weigh nothing.

Hardware: two CPU cores. Expect: held-out accuracy from 0.475-0.489 to 0.688-0.696 (seeds 0, 1, 2).
"""

from jaxgrpo.config import (
    Batch,
    Config,
    Evaluation,
    Filter,
    Optimizer,
    Sampling,
    Verifier,
)
from jaxgrpo.data.arithmetic import Arithmetic
from jaxgrpo.losses import GRPO, Distilled
from jaxgrpo.problems import Weighted
from jaxgrpo.rewards import languages, layout, maths


def get_config() -> Config:
    return Config(
        out="out/distill_tiny",
        data=Arithmetic(),
        rewards={
            "accuracy": Weighted(maths.accuracy, 1.0),
            "format": Weighted(layout.think_then_answer, 0.1),
            "language": Weighted(languages.target_word_ratio, 0.3),
        },
        steps=28,
        objective=Distilled(GRPO(kl=0.0), weight=1.0, reward_weight=0.0),
        batch=Batch(groups=16, group_size=4, micro_batch=16),
        sampling=Sampling(prompt_width=80, max_new_tokens=120, slots=128),
        filter=Filter(rule="off"),
        optimizer=Optimizer(learning_rate=1e-4, warmup_steps=4, schedule="linear"),
        evaluation=Evaluation(problems=288, samples=4),
        verifier=Verifier(workers=4, deadline=0.5),
    )
