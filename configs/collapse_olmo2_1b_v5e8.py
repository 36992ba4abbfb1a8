"""As collapse_qwen2_5_1_5b_v5e8.py with OLMo2-1B-Instruct.

    python -m jaxgrpo.train --config configs/collapse_olmo2_1b_v5e8.py \
        --config.model=PATH/TO/OLMo-2-0425-1B-Instruct --config.data.path=gsm8k_ko.jsonl \
        --config.data.language=ko

Hardware: 8 TPU v5e chips (v5e:2x4). Not yet run on it; see `jaxgrpo plan`. The paper reports on
Korean GSM8K: accuracy from 6.6 to 46.5, Korean words down to about 0, English words 80 to 97 %.
"""

from dataclasses import replace

import collapse_qwen2_5_1_5b_v5e8

from jaxgrpo.config import Config


def get_config() -> Config:
    base = collapse_qwen2_5_1_5b_v5e8.get_config()
    return replace(
        base, out="out/collapse_olmo2_1b_v5e8", model="OLMo-2-0425-1B-Instruct"
    )
