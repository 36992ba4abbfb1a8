"""As qwen2_5_3b_v5e8.py with Qwen3-32B on a TPU v5p-64: 32 chips, for v5p counts cores, of which a
chip has two.

    python -m jaxgrpo.train --config configs/qwen3_32b_v5p64.py --config.model=PATH/TO/Qwen3-32B \
        --config.data.path=numina.jsonl --config.data.question=problem

No paper's setting: it shows what grows with the model. Hardware: 32 TPU v5p chips (v5p:2x4x4),
several machines: the same command on each. Not yet run on it; see `jaxgrpo plan`.
"""

from dataclasses import replace

import qwen2_5_3b_v5e8

from jaxgrpo.config import Config


def get_config() -> Config:
    base = qwen2_5_3b_v5e8.get_config()
    return replace(
        base,
        out="out/qwen3_32b_v5p64",
        model="Qwen3-32B",
        batch=replace(base.batch, micro_batch=32),
    )
