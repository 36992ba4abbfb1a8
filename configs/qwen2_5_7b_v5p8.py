"""As qwen2_5_7b_v5e16.py on a TPU v5p-8: four chips, for v5p counts cores, of which a chip has two.

    python -m jaxgrpo.train --config configs/qwen2_5_7b_v5p8.py \
        --config.model=PATH/TO/Qwen2.5-7B --config.data.path=numina.jsonl \
        --config.data.question=problem

Hardware: 4 TPU v5p chips (v5p:2x2x1). Not yet run on it; see `jaxgrpo plan`.
"""

from dataclasses import replace

import qwen2_5_7b_v5e16

from jaxgrpo.config import Config, Mesh


def get_config() -> Config:
    base = qwen2_5_7b_v5e16.get_config()
    # There is room for moments in float32.
    return replace(
        base,
        out="out/qwen2_5_7b_v5p8",
        mesh=Mesh(data=1, fsdp=-1),
        optimizer=replace(base.optimizer, state_dtype="float32"),
    )
