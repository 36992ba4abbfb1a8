"""As gsm8k_qwen2_5_0_5b_v5e1.py on one TPU v6e (Trillium) chip, which Colab lends, too: larger
pieces, less computed twice.

    python -m jaxgrpo.train --config configs/gsm8k_qwen2_5_0_5b_v6e1.py \
        --config.model=PATH/TO/Qwen2.5-0.5B-Instruct

Hardware: 1 TPU v6e chip (v6e:1x1). Not yet run on it; see `jaxgrpo plan`. Expect: as there, not
known yet.
"""

from dataclasses import replace

import gsm8k_qwen2_5_0_5b_v5e1

from jaxgrpo.config import Compute, Config


def get_config() -> Config:
    base = gsm8k_qwen2_5_0_5b_v5e1.get_config()
    return replace(
        base,
        out="out/gsm8k_qwen2_5_0_5b_v6e1",
        batch=replace(base.batch, micro_batch=32),
        sampling=replace(base.sampling, slots=256),
        optimizer=replace(base.optimizer, state_dtype="float32"),
        compute=Compute(scan_layers=True, remat="dots"),
    )
