r"""The cold start of balanced online difficulty filtering (arXiv 2504.03380): Qwen2.5-3B learns
long worked solutions before reinforcement learning, on eight TPU v5e chips.

    python -m jaxgrpo.sft --config configs/cold_start.py \
        --config.model=PATH/TO/Qwen2.5-3B --config.data.path=solutions.jsonl
    python -m jaxgrpo.export --run out/cold_start --to cold_start
    python -m jaxgrpo.train --config configs/qwen2_5_3b_v5e8.py --config.model=cold_start \
        --config.data.path=numina.jsonl --config.data.question=problem

A row has a problem, a long solution and its answer:
{"problem": "...", "solution": "...", "answer": "12"}. The paper learns from 1,107 NuminaMath
problems with long solutions; who wrote these, the number of passes, the learning rate and the
lengths are not known to us: those here are our choice. The system message and the layout of the
completion are those that the reinforcement learning asks for and rewards.

Hardware: 8 TPU v5e chips. Not yet run on it.
"""

from jaxgrpo.config import (
    Compute,
    Evaluation,
    Mesh,
    Optimizer,
    Packing,
    SFTConfig,
)
from jaxgrpo.data.examples import THINK_THEN_ANSWER, Solution
from jaxgrpo.data.table import Table


def get_config() -> SFTConfig:
    return SFTConfig(
        out="out/cold_start",
        model="Qwen2.5-3B",
        system="Reason step by step between <think> and </think>, then give the final answer in "
        "\\boxed{}.",
        data=Table(question="problem", solution="solution", heldout_size=64),
        solution=Solution(layout=THINK_THEN_ANSWER),
        dtype="bfloat16",
        epochs=3,
        packing=Packing(rows=16, width=4096, micro_batch=8),
        optimizer=Optimizer(learning_rate=1e-5, warmup_steps=5, schedule="cosine"),
        evaluation=Evaluation(problems=64, every=20),
        mesh=Mesh(data=1, fsdp=-1),
        compute=Compute(scan_layers=True, remat="full"),
        save_every=20,
    )
