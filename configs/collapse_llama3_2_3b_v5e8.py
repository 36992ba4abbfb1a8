"""As collapse_qwen2_5_1_5b_v5e8.py with Llama-3.2-3B-Instruct.

    python -m jaxgrpo.train --config configs/collapse_llama3_2_3b_v5e8.py \
        --config.model=PATH/TO/Llama-3.2-3B-Instruct --config.data.path=gsm8k_uk.jsonl \
        --config.data.language=uk

Hardware: 8 TPU v5e chips (v5e:2x4). Not yet run on it; see `jaxgrpo plan`. The paper reports of
this model that in Ukrainian the share of words in the target language falls by more than 80 %.
"""

from dataclasses import replace

import collapse_qwen2_5_1_5b_v5e8

from jaxgrpo.config import Config


def get_config() -> Config:
    base = collapse_qwen2_5_1_5b_v5e8.get_config()
    return replace(
        base,
        out="out/collapse_llama3_2_3b_v5e8",
        model="Llama-3.2-3B-Instruct",
        batch=replace(base.batch, micro_batch=16),
    )
