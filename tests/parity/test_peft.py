"""PEFT with an exported adapter, and transformers with the merged folder, compute the policy.

Needs torch and peft: `pip install torch peft`, then
`pytest tests/parity -p no:cacheprovider --no-cov`.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers

from jaxgrpo.device.logits import to_logits
from jaxgrpo.export import export
from jaxgrpo.models import attention, hf_folder, transformer
from jaxgrpo.models.lora import TARGETS, Lora
from jaxgrpo.models.transformer import SequenceInputs
from tests.tiny_runs import leave_run

# PEFT 0.21 asks transformers 5 for a property by a name that transformers is about to drop.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

TOKENS = np.random.default_rng(0).integers(0, 1024, (2, 24)).astype(np.int32)


def their_logits(model):
    with torch.no_grad():
        return model.eval()(torch.as_tensor(TOKENS, dtype=torch.long)).logits.numpy()


def our_logits(folder, params):
    segments = jnp.ones(TOKENS.shape, jnp.int32)
    inputs = SequenceInputs(
        tokens=jnp.asarray(TOKENS),
        positions=attention.sequence_positions(segments),
        mask=attention.sequence_mask(segments),
    )
    config = hf_folder.load_config(folder)
    params = jax.tree.map(jnp.asarray, params)

    @jax.jit
    def forward(params):
        return transformer.forward(config, params, inputs)

    hidden, _ = forward(params)
    return np.asarray(to_logits(hidden, transformer.output_embedding(params), 1.0))


def load(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    )


@pytest.mark.parametrize(
    ("architecture", "adapters"),
    [
        ("LlamaForCausalLM", Lora(3, 4.5, TARGETS)),
        ("Qwen2ForCausalLM", Lora(2, 1.0, ("key", "out", "gate"))),
    ],
)
def test_peft_and_transformers_compute_the_policy(tmp_path, architecture, adapters):
    run, policy = leave_run(tmp_path, architecture, adapters)
    base = Path(json.loads((run / "config.json").read_text())["model"])
    export(run, tmp_path / "merged")
    export(run, tmp_path / "adapter", adapter=True)
    ours = our_logits(base, policy)
    untrained = their_logits(load(base))
    assert np.abs(ours - untrained).max() > 0.1
    np.testing.assert_allclose(
        their_logits(load(tmp_path / "merged")), ours, rtol=0, atol=1e-4
    )
    adapted = peft.PeftModel.from_pretrained(load(base), tmp_path / "adapter")
    np.testing.assert_allclose(their_logits(adapted), ours, rtol=0, atol=1e-4)
    # The adapter's folder names its base model.
    with_base = peft.AutoPeftModelForCausalLM.from_pretrained(
        tmp_path / "adapter", local_files_only=True
    )
    merged = with_base.merge_and_unload()
    np.testing.assert_allclose(their_logits(merged), ours, rtol=0, atol=1e-4)
