"""DPPO's gradients and masks of completions against verl's, which tools/golden_verl.py wrote."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrpo import losses
from jaxgrpo.losses import terms
from tests.losses.cases import gradient, metrics_of

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "verl.json").read_text())
INPUTS = GOLDEN["inputs"]


def golden_inputs():
    """Returns the inputs that verl was given."""
    logprobs = jnp.array(INPUTS["logprobs"])
    old_logprobs = jnp.array(INPUTS["old_logprobs"])
    return losses.TokenInputs(
        logprobs=logprobs,
        old_logprobs=old_logprobs,
        ref_logprobs=old_logprobs,
        advantages=jnp.array(INPUTS["advantages"]),
        mask=jnp.arange(logprobs.shape[1]) < jnp.array(INPUTS["lengths"])[:, None],
    )


@pytest.mark.parametrize(
    "case", GOLDEN["dppo"], ids=lambda case: f"{case['divergence']} {case['threshold']}"
)
def test_dppo_has_verls_gradients(case):
    objective = losses.DPPO(case["threshold"], case["divergence"])
    inputs = golden_inputs()
    found = gradient(objective, inputs)
    np.testing.assert_allclose(found, case["gradient"], rtol=1e-5, atol=1e-6)
    # The inputs have tokens that are stopped on either side, and others.
    stopped = metrics_of(objective, inputs)
    assert 0 < stopped["policy/clipped_low"] < 0.5
    assert 0 < stopped["policy/clipped_high"] < 0.5


@pytest.mark.parametrize("case", GOLDEN["geometric"], ids=lambda case: str(case["low"]))
def test_geometric_bounds_keep_the_completions_that_verl_keeps(case):
    inputs = golden_inputs()
    weights = terms.importance_weights(
        inputs.logprobs - inputs.old_logprobs,
        inputs.mask,
        mode="mask",
        level="geometric",
        low=case["low"],
        high=case["high"],
    )
    kept = jnp.where(inputs.mask, weights, 0.0).any(axis=1)
    np.testing.assert_array_equal(kept, case["kept"])
    assert len(set(case["kept"])) == 2


@pytest.mark.parametrize(
    "case",
    GOLDEN["trust_region"],
    ids=lambda case: f"{case['criterion']} {case['threshold']}",
)
def test_the_trust_region_keeps_the_completions_that_verl_keeps(case):
    objective = losses.TrustRegionMasked(
        losses.RLOO(), case["threshold"], case["criterion"]
    )
    inputs = golden_inputs()._replace(advantages=jnp.ones(8))
    kept = (gradient(objective, inputs) != 0).any(axis=1)
    np.testing.assert_array_equal(kept, case["kept"])
    assert len(set(case["kept"])) == 2
