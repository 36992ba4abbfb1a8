"""Whole runs that take seconds.

A random network 16 wide, problems of one operation, completions of 8 tokens.
"""

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrpo import plots
from jaxgrpo.checkpoint import Checkpoints
from jaxgrpo.config import Config, SFTConfig, load, load_sft, overrides
from jaxgrpo.data import prompt_filter
from jaxgrpo.device.optimizer import adamw, schedule
from jaxgrpo.device.specs import ModelSpec, SamplingSpec, UpdateSpec
from jaxgrpo.distributed.mesh import make_mesh
from jaxgrpo.models import hf_folder, lora, transformer
from jaxgrpo.models.lora import Lora
from jaxgrpo.programs import compile_programs
from jaxgrpo.rewards.maths import golds
from tests.tiny_models import make_folder

ROOT = Path(__file__).parent.parent
TEXT = """
from jaxgrpo.config import Batch, Config, Evaluation, Filter, Optimizer, Sampling, Verifier
from jaxgrpo.data.arithmetic import Arithmetic
from jaxgrpo.problems import Weighted
from jaxgrpo.rewards import languages, maths


def get_config():
    return Config(
        data=Arithmetic(levels=(1,), size=24),
        rewards={
            "accuracy": Weighted(maths.accuracy),
            "language": Weighted(languages.target_word_ratio),
        },
        model="MODEL",
        out="OUT",
        steps=4,
        batch=Batch(groups=2, group_size=4),
        sampling=Sampling(prompt_width=80, max_new_tokens=8),
        filter=Filter(rule="off"),
        optimizer=Optimizer(learning_rate=1e-2, warmup_steps=1),
        verifier=Verifier(workers=1),
        evaluation=Evaluation(problems=6, samples=4),
        save_every=1,
        show_rollouts_every=2,
    )
"""
"""Random networks solve nothing. Their texts differ in how much is in the target language, so that
there is something to learn."""

VARIABLE_METRICS = ("time/", "rollout/", "perf/", "memory/")
"""Prefixes of metrics that depend on speed (of the rollout: what was in flight when the batch was
full), and of those that a process writes only once, at its first step."""
SFT_TEXT = """
from jaxgrpo.config import EvaluationSampling, Evaluation, Optimizer, Packing, SFTConfig, Verifier
from jaxgrpo.data.arithmetic import Arithmetic, solution
from jaxgrpo.problems import Weighted
from jaxgrpo.rewards import languages, maths


def get_config():
    return SFTConfig(
        data=Arithmetic(levels=(1,), size=24),
        solution=solution,
        rewards={
            "accuracy": Weighted(maths.accuracy),
            "language": Weighted(languages.target_word_ratio),
        },
        model="MODEL",
        out="OUT",
        packing=Packing(rows=4, width=160),
        optimizer=Optimizer(learning_rate=1e-2, warmup_steps=1),
        sampling=EvaluationSampling(prompt_width=80, max_new_tokens=8, slots=16),
        evaluation=Evaluation(problems=6, samples=2, every=3),
        verifier=Verifier(workers=1),
        save_every=1,
    )
"""
"""The same of supervised training: three steps are a pass."""

_folder = tempfile.TemporaryDirectory()


@functools.cache
def model_folder() -> Path:
    """Returns the folder of a network of one layer, which is made once."""
    return make_folder(Path(_folder.name) / "model", num_hidden_layers=1)


def config_file(folder: Path, text: str = TEXT) -> str:
    """Writes a config file into `folder`, whose run writes to folder/out; returns its path."""
    path = folder / "tiny.py"
    path.write_text(
        text.replace("MODEL", str(model_folder())).replace("OUT", str(folder / "out"))
    )
    return str(path)


def make_config(folder: Path, *overrides: str) -> Config:
    """Returns the config of such a file, changed by overrides such as "steps=2"."""
    return load(config_file(folder), [f"--config.{override}" for override in overrides])


def make_sft_config(folder: Path, *overrides: str) -> SFTConfig:
    """Returns the config of such a file, changed by overrides such as "steps=2"."""
    flags = [f"--config.{override}" for override in overrides]
    return load_sft(config_file(folder, SFT_TEXT), flags)


def share_programs(monkeypatch, draws_plot: bool = False) -> None:
    """Shortens runs: they look at 32 prompts and gold answers, not at 2,000 and 10,000.

    draws_plot: whether they draw metrics.png, which takes a second
    """
    monkeypatch.setattr(prompt_filter, "MAX_CHECKED", 32)
    monkeypatch.setattr(golds, "MAX_CHECKED", 32)
    if not draws_plot:
        monkeypatch.setattr(plots, "plot", lambda *_: None)


def leave_run(
    folder: Path,
    architecture: str = "LlamaForCausalLM",
    adapters: Lora = lora.NO_LORA,
    stacked: bool = False,
) -> tuple[Path, dict]:
    """Writes what a run leaves behind: config.json, and a checkpoint of step 3.

    All that is trained has moved.

    Returns the run's folder, and the policy's parameters.
    """
    model_path = make_folder(folder / "model", architecture, tie_word_embeddings=False)
    programs = compile_programs(
        ModelSpec(
            hf_folder.load_config(model_path),
            make_mesh(),
            adapters=adapters,
            scan_layers=stacked,
        ),
        SamplingSpec(prompt_width=4, new_tokens=4, slots=1, eos_ids=(1,)),
        UpdateSpec(prompt_width=4),
        adamw(schedule("constant", 1e-3, 0, 10), 0.9, 0.95, 0.1, 1.0),
    )
    rng = np.random.default_rng(9)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.asarray(rng.normal(0.0, 0.3, leaf.shape), leaf.dtype)

    state = jax.tree.map(draw, programs.state_like)
    out = folder / "out"
    with Checkpoints(out, keep=1) as checkpoints:
        checkpoints.save(3, state, {})

    config: dict = {"model": str(model_path)}
    if stacked or adapters.rank:  # older runs have no such settings
        config |= {
            "lora": overrides.describe(adapters),
            "compute": {"scan_layers": stacked},
        }
    (out / "config.json").write_text(json.dumps(config))

    base = hf_folder.load_params(model_path) if adapters.rank else {}
    policy = lora.attach(base, transformer.unstack(state.params))
    return out, jax.device_get(lora.merge(policy, adapters.scale))


def comparable(records: list[dict]) -> list[dict]:
    """Returns records without metrics that two equal runs may differ in."""
    return [
        {
            name: value
            for name, value in record.items()
            if not name.startswith(VARIABLE_METRICS)
        }
        for record in records
    ]


def lines(path: Path) -> list[dict]:
    """Returns the JSON objects of a file with one a line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def start(module: str, *arguments: str, **environment: str) -> subprocess.Popen:
    """Starts `python -m module arguments` as a process of its own; its output is text."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
