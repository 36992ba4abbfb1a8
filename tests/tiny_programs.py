"""Programs of a tiny network, and batches that its policy has sampled."""

from dataclasses import replace

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from jaxgrpo.device.optimizer import Optimizer
from jaxgrpo.device.specs import ModelSpec, Precision, SamplingSpec, UpdateSpec
from jaxgrpo.distributed.mesh import make_mesh, named_leaves, to_device
from jaxgrpo.models.model_config import ModelConfig
from jaxgrpo.programs import Programs, compile_programs
from jaxgrpo.rollout.engine import Engine
from jaxgrpo.rollout.groups import Group, JudgedGroup, SamplingRequest
from jaxgrpo.types import SamplingParams
from tests.tiny_engines import ENDS, NETWORK, TOKENIZER, make_problems

WIDTH = 5
NEW = 6
NUM_GROUPS = 8
GROUP = 2
ROWS = NUM_GROUPS * GROUP


def make_programs(
    mesh: Mesh | None = None,
    precision: Precision = Precision(),  # noqa: B008
    scan_layers: bool = False,
    optimizer: Optimizer | None = None,
    reference: ModelConfig | None = None,
    **update: object,
) -> Programs:
    """Returns programs of the tiny network.

    reference: another network in the reference's place
    update: changed fields of UpdateSpec
    """
    if optimizer is None:
        # Adam with a large epsilon: with the usual one, rounding in a gradient near 0 decides which
        # way a parameter goes.
        adam = optax.adamw(2e-3, b1=0.9, b2=0.95, eps=1e-2, weight_decay=0.1)
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), adam)
    mesh = mesh or make_mesh(devices=jax.devices()[:1])
    model = ModelSpec(NETWORK, mesh, precision, scan_layers=scan_layers)
    sampling = SamplingSpec(
        WIDTH, NEW, slots=16, eos_ids=ENDS, group_size=GROUP, chunk=4
    )
    update_spec = UpdateSpec(**({"group_size": GROUP, "prompt_width": WIDTH} | update))
    other = replace(model, network=reference) if reference else None
    return compile_programs(model, sampling, update_spec, optimizer, other)


def sample(programs: Programs, params) -> list[JudgedGroup]:
    """Returns groups in which the first completion was right and the second wrong."""
    engine = Engine(programs, TOKENIZER, WIDTH, NEW, seed=0)
    request = SamplingRequest(GROUP, SamplingParams(), "training")
    groups = engine(params, make_problems(NUM_GROUPS, longest=WIDTH), request, 1)
    return [with_rewards(group, [1.0, 0.0]) for group in groups]


def with_rewards(group: Group, rewards: list[float]) -> JudgedGroup:
    """Returns the group as if it had been judged, with these rewards."""
    return JudgedGroup(
        **vars(group),
        values={},
        missing={},
        rewards=np.array(rewards),
        solved=rewards.count(1.0),
        judged=len(rewards),
    )


def place(programs: Programs, params):
    """Returns parameters where the programs want them.

    Placed otherwise, they would have the programs compile once more.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, programs.params_like)
    return to_device(jax.device_get(params), shardings)


def leaves(tree):
    """Returns each leaf's bytes, to be compared bit for bit."""
    return {
        name: np.asarray(leaf).tobytes() for name, leaf in named_leaves(tree).items()
    }


def assert_close(a, b, atol=1e-6):
    for name, leaf in named_leaves(a).items():
        np.testing.assert_allclose(
            leaf, named_leaves(b)[name], rtol=0, atol=atol, err_msg=name
        )


def assert_same_metrics(a, b):
    assert a.keys() == b.keys()
    # How many columns were computed for the same tokens is no part of what was learned.
    for name in a.keys() - {"update/utilisation"}:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-6, err_msg=name)
