"""Laws of the table of compiled programs, and of what it counts."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxgrpo.config import load
from jaxgrpo.distributed.mesh import device_bytes, make_mesh
from jaxgrpo.errors import UserError
from jaxgrpo.models import splash
from jaxgrpo.plan import compiled, hlo, jaxpr_flops, planner
from tests import tiny_runs
from tools import compiled_table


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tiny_runs.config_file(tmp_path_factory.mktemp("table"))
    return load(path, ["--config.compute.remat=full"])


@pytest.fixture(scope="module")
def plan(config):
    target = planner.make_target(config, None, None)
    names = ("update", "decode")
    return planner.make_plan(config, target, compiled.Compiler(), names)


def test_an_update_makes_the_least_products_but_for_two_differences(config, plan):
    """On a CPU attention computes all pairs, and so few logits are kept, not made again."""
    row = compiled_table.figures(plan)
    network = plan.network.config
    width = config.sampling.prompt_width
    new = config.sampling.max_new_tokens
    groups = config.batch.groups
    rows = groups * config.batch.group_size

    dense = groups * width**2 + rows * new * (width + new)
    prompt_pairs = width * (width + 1) / 2
    completion_pairs = new * width + new * (new + 1) / 2
    causal = groups * prompt_pairs + rows * completion_pairs
    pair_flops = 4 * network.heads * network.head_width * network.layers
    logits = 2 * network.vocab_size * network.width * rows * new
    differences = 5 * pair_flops * (dense - causal) - logits
    assert row.update_flops == row.least_flops + differences


def test_the_least_of_twice_the_groups_is_twice_as_much(config, plan):
    network = plan.network.config
    batch = dataclasses.replace(config.batch, groups=2 * config.batch.groups)
    twice = dataclasses.replace(config, batch=batch)
    least = compiled_table.least_update_flops(config, network)
    assert compiled_table.least_update_flops(twice, network) == 2 * least


def test_a_token_step_reads_an_embedding_of_its_own_in_rows(plan):
    published = dict(plan.inputs.published)
    published.setdefault("output_embedding", published["embedding"])
    untied = dataclasses.replace(plan.inputs, published=published)
    everything = device_bytes(published)
    embedding = device_bytes(published["embedding"])
    assert compiled_table.weight_bytes(untied) == everything - embedding


def test_a_run_that_does_not_fit_has_no_figures(plan):
    failed = dataclasses.replace(plan.compiled["update"], failed="too large")
    refused = dataclasses.replace(plan, compiled={"update": failed})
    with pytest.raises(UserError, match="see jaxgrpo plan"):
        compiled_table.figures(refused)


def test_the_table_has_each_run_before_and_now(tmp_path, plan):
    now = compiled_table.figures(plan)
    before = dataclasses.replace(now, step_bytes=2 * now.least_bytes)
    other = dataclasses.replace(now, run="another")
    compiled_table.write([now], [other, before], tmp_path)
    assert compiled_table.read(tmp_path / "compiled.json") == [now]
    *_, old_line, new_line = (tmp_path / "compiled.md").read_text().splitlines()
    assert "| before |" in old_line
    assert "| 2.00 |" in old_line
    assert "| now |" in new_line


CONDITIONAL = """HloModule tiny

%usual (x.1: f32[4,8]) -> f32[4,8] {
  %x.1 = f32[4,8]{1,0} parameter(0)
  ROOT %twice = f32[4,8]{1,0} add(%x.1, %x.1)
}

%rare (x.2: f32[4,8]) -> f32[4,8] {
  ROOT %x.2 = f32[4,8]{1,0} parameter(0)
}

ENTRY %main (p: pred[], x: f32[4,8]) -> f32[4,8] {
  %p = pred[] parameter(0)
  %x = f32[4,8]{1,0} parameter(1)
  ROOT %y = f32[4,8]{1,0} conditional(%p, %x, %x), BRANCHES
}
"""


@pytest.mark.parametrize(
    "branches",
    [
        "branch_computations={%usual, %rare}",
        "true_computation=%rare, false_computation=%usual",
    ],
)
def test_a_conditional_counts_the_branch_of_false(branches):
    cost = hlo.program_cost(CONDITIONAL.replace("BRANCHES", branches))
    assert cost.bytes == 3 * 4 * 8 * 4  # read twice, written once


def test_blocks_that_a_kernel_skips_do_not_count():
    """Of 5 x 5 blocks of 128 columns causal attention needs 15, with two products each."""
    columns = 640
    heads = 2
    width = 8
    mesh = make_mesh(devices=jax.devices()[:1])
    segments = jnp.ones((1, columns), jnp.int32)

    def attend(queries, keys, values):
        kernel = splash.attention(mesh, segments, interpret=True)
        return kernel(queries, [(keys, values)])

    queries = jax.ShapeDtypeStruct((1, heads, columns, width), jnp.float32)
    keys = jax.ShapeDtypeStruct((1, 1, width, columns), jnp.float32)
    values = jax.ShapeDtypeStruct((1, 1, columns, width), jnp.float32)
    jaxpr = jax.jit(attend).trace(queries, keys, values).jaxpr
    flops = jaxpr_flops.written_flops(jaxpr, 1, kernels=True)
    assert flops == heads * 15 * 2 * (2 * 128 * 128 * width)
