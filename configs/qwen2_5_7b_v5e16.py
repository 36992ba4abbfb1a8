"""As qwen2_5_3b_v5e8.py with Qwen2.5-7B, the paper's larger model, on sixteen TPU v5e chips.

    python -m jaxgrpo.train --config configs/qwen2_5_7b_v5e16.py \
        --config.model=PATH/TO/Qwen2.5-7B --config.data.path=numina.jsonl \
        --config.data.question=problem

Hardware: 16 TPU v5e chips (v5e:4x4), several machines: the same command on each. Not yet run on it;
`jaxgrpo plan` says: it fits, 14.7 of 15.75 GiB a chip in an update.
"""

from dataclasses import replace

import qwen2_5_3b_v5e8

from jaxgrpo.config import Config, Mesh


def get_config() -> Config:
    base = qwen2_5_3b_v5e8.get_config()
    return replace(
        base,
        out="out/qwen2_5_7b_v5e16",
        model="Qwen2.5-7B",
        # Four rows of a micro-batch lie on two chips, which share their matrices: a prompt is read
        # once for four rows. With fsdp=16 it is once for two, and an update makes 1.05 times as
        # many FLOPs.
        mesh=Mesh(data=1, fsdp=-1, tensor=2),
        batch=replace(base.batch, micro_batch=32),
        # AdamW's two moments in bfloat16, rounded at random: in float32 an update needs
        # 16.3 GiB a chip.
        optimizer=replace(base.optimizer, state_dtype="bfloat16"),
    )
