"""Whole runs that take seconds: a random network 16 wide, problems of one operation, completions of 8 tokens."""

import functools
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrpo import build
from jaxgrpo import programs as steps
from jaxgrpo.checkpoint import Checkpoints
from jaxgrpo.config import Config, load, overrides
from jaxgrpo.device.optimizer import adamw, schedule
from jaxgrpo.distributed.mesh import make_mesh
from jaxgrpo.models import hf_folder, lora, transformer
from jaxgrpo.models.lora import Lora
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
        rewards={"accuracy": Weighted(maths.accuracy), "language": Weighted(languages.target_word_ratio)},
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
"""Random networks solve nothing; what a text says in the target language differs, so that there is something to learn."""

_folder = tempfile.TemporaryDirectory()


@functools.cache
def model_folder() -> Path:
    """The folder of a network of one layer, made once."""
    return make_folder(Path(_folder.name) / "model", num_hidden_layers=1)


def config_file(folder: Path, text: str = TEXT) -> str:
    """A config file in `folder`, whose run writes to folder/out."""
    path = folder / "tiny.py"
    path.write_text(text.replace("MODEL", str(model_folder())).replace("OUT", str(folder / "out")))
    return str(path)


def make_config(folder: Path, *overrides: str) -> Config:
    """The config of such a file, changed by flags such as "steps=2"."""
    return load(config_file(folder), [f"--config.{override}" for override in overrides])


@functools.cache
def _compiled(model, **shapes):
    return steps.compile_programs(model, *_compiled.latest, **shapes)


def compile_once(model, optimizer, mesh, **shapes):
    """In place of compile_steps: programs of the same shapes are compiled once for all tests. Their optimizers are alike.

    Each run may seal its own: what one has compiled another may still have to.
    """
    _compiled.latest = optimizer, mesh
    made = _compiled(model, **shapes)
    programs = {
        name: value for name, value in vars(made).items() if isinstance(value, steps.Program)
    }
    return replace(
        made, **{name: steps.Program(name, program._jitted) for name, program in programs.items()}
    )


def share_programs(monkeypatch) -> None:
    """For runs that only have to be short: they share compiled programs, and look at the length of 32 prompts, not 10,000."""
    monkeypatch.setattr(build, "compile_steps", compile_once)
    monkeypatch.setattr(build, "SCANNED", 32)


def leave_run(
    folder: Path,
    architecture: str = "LlamaForCausalLM",
    adapters: Lora = lora.NO_LORA,
    stacked: bool = False,
) -> tuple[Path, dict]:
    """(OUT, parameters): what a run leaves behind, config.json and a checkpoint of step 3, and what the policy then was.
    All that is trained has moved."""
    model = make_folder(folder / "model", architecture, tie_word_embeddings=False)
    network, optimizer = (
        hf_folder.load_config(model),
        adamw(schedule("constant", 1e-3, 0, 10), 0.9, 0.95, 0.1, 1.0),
    )
    shapes = {
        "prompt_width": 4,
        "new_tokens": 4,
        "micro_batch": 0,
        "ends": (1,),
        "slots": 1,
        "scan_layers": stacked,
    }
    state_like = steps.compile_programs(
        network, optimizer, make_mesh(), **shapes, adapters=adapters
    ).state_like
    rng = np.random.default_rng(9)
    random = lambda leaf: jnp.asarray(rng.normal(0.0, 0.3, leaf.shape), leaf.dtype)
    state = jax.tree.map(random, state_like)
    out = folder / "out"
    with Checkpoints(out, keep=1) as checkpoints:
        checkpoints.save(3, state, {})
    described = {"lora": overrides.describe(adapters), "compute": {"scan_layers": stacked}}
    # Runs of before have no such settings.
    (out / "config.json").write_text(
        json.dumps({"model": str(model)} | (described if stacked or adapters.rank else {}))
    )
    base = hf_folder.load_params(model) if adapters.rank else {}
    return out, jax.device_get(
        lora.merge(lora.attach(base, transformer.unstack(state.params)), adapters.scale)
    )


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def start(module: str, *arguments: str, **environment: str) -> subprocess.Popen:
    """`python -m module arguments` as a process of its own; its output is text."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
