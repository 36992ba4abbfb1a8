"""Laws of the planner.

Parts sum, shapes agree with the compiler, loops count as often as they run, and a run that cannot
fit is told so.
"""

import dataclasses
import json
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxgrpo.config import load
from jaxgrpo.distributed.mesh import device_bytes, named_leaves
from jaxgrpo.errors import UserError
from jaxgrpo.models import products
from jaxgrpo.plan import (
    chips,
    command,
    compiled,
    hlo,
    jaxpr_flops,
    memory,
    networks,
    planner,
    report,
    times,
)
from tests import tiny_runs
from tools import plan_growth


@pytest.fixture(scope="module")
def compiler():
    """A compiler that all tests share, so that each program is compiled once."""
    return compiled.Compiler()


@pytest.fixture(scope="module")
def config_path(tmp_path_factory):
    return tiny_runs.config_file(tmp_path_factory.mktemp("plan"))


@pytest.fixture(scope="module")
def plan(config_path, compiler):
    config = load(config_path)
    return planner.make_plan(config, planner.make_target(config, None, None), compiler)


@pytest.fixture(scope="module")
def several(config_path, plan, compiler):
    """The plan of a run that makes four updates with a batch, each with half of its groups."""
    flags = ["--config.batch.updates=2", "--config.batch.epochs=2"]
    config = load(config_path, flags)
    return planner.make_plan(config, plan.target, compiler, ("score", "update"))


def run(monkeypatch, capsys, compiler, *arguments: str) -> tuple[int, str]:
    """Returns the exit code and what is printed; uses `compiler` for the run's own."""
    monkeypatch.setattr(command, "Compiler", lambda _log: compiler)
    try:
        command.main(list(arguments))
        code = 0
    except SystemExit as error:
        code = error.code
    return code, capsys.readouterr().out


def test_parts_sum_to_what_is_shown(plan):
    lines = report.memory_table(plan.phases)
    parts = [line.split()[-len(plan.phases) :] for line in lines[1:-1]]
    assert lines[-1].startswith("together")
    assert len(parts) >= 6
    name, peak = memory.peak_phase(plan.phases)
    totals = [sum(phase.values()) for phase in plan.phases.values()]
    assert peak == sum(plan.phases[name].values()) == max(totals)


@pytest.mark.parametrize(
    ("which", "name"),
    [
        *(("plan", name) for name in ("update", "decode", "prefill", "insert")),
        ("several", "score"),
        ("several", "update"),
    ],
)
def test_shapes_are_as_large_as_the_compiler_says(request, which, name):
    """Shapes and shardings give the size of a program's arguments that the compiler counts.

    All but what comes from the host with each call. The programs of several updates do not read all
    that they are given, and the compiler leaves out the rest.
    """
    plan = request.getfixturevalue(which)
    leaves = jax.tree.leaves(plan.inputs.calls[name].arguments)
    from_host = [leaf for leaf in leaves if not getattr(leaf, "sharding", None)]
    max_host_bytes = sum(math.prod(jnp.shape(leaf)) * 8 + 8 for leaf in from_host)
    program = plan.compiled[name]
    if which == "plan":
        assert program.shapes <= program.arguments + 8 * len(leaves)
    assert program.arguments <= program.shapes + max_host_bytes


def test_a_program_needs_its_arguments_and_what_the_phase_says(plan):
    update = plan.compiled["update"]
    parts = plan.phases["update"]
    held = sum(
        parts[part] for part in ("parameters", "optimizer", "reference", "batch")
    )
    assert abs(held - update.arguments) < 256
    assert parts["temporaries"] == update.temporaries
    assert parts["results"] < update.arguments / 10  # the state is updated in place


def test_several_updates_are_planned_as_they_are_made(plan, several):
    rows, part = several.inputs.batch
    assert len(rows.advantages) == 8
    assert len(part.advantages) == 4
    assert "score" not in plan.phases
    assert several.phases["score"]["batch"] == several.phases["update"]["batch"]
    # Half of the rows in a forward and backward pass, and the reference is scored before.
    update = several.compiled["update"]
    assert update.temporaries < 0.75 * plan.compiled["update"].temporaries
    assumed = times.Assumptions(8, 1.0)
    calls = times.calls_per_step(several.config, several.inputs, assumed)
    assert (calls["score"], calls["update"]) == (1, 4)
    assert any("score" in line for line in report.memory_table(several.phases))


@pytest.mark.parametrize("updates", [1, 2])
def test_an_update_on_bins_is_planned_by_micro_batches(
    config_path, plan, compiler, updates
):
    flags = ["--config.batch.pack=96", f"--config.batch.updates={updates}"]
    config = load(config_path, flags)
    packed = planner.make_plan(config, plan.target, compiler, ("score", "update"))
    batch = packed.inputs.batch
    bins = (batch if updates == 1 else batch[1].batch).bins
    # A bin for each row at worst, which are 8 of 88 columns.
    assert bins.shape == (8 // updates, 96)
    update = packed.compiled["update"]
    assert update.temporaries < plan.compiled["update"].temporaries
    lines = report._program_table(packed.compiled, None)
    assert any(line.startswith("update (a micro-batch)") for line in lines)
    # 2 groups of 80 + 4 * 4 columns fill two bins.
    assumed = times.Assumptions(4, 1.0)
    calls = times.calls_per_step(config, packed.inputs, assumed)
    assert calls["update"] == 2 / packed.inputs.programs.bins_at_once
    singles = planner.remedies(config, 1)[:-1]
    assert not any("micro_batch" in flags[0] for flags in singles)


def test_slots_are_given_back_before_an_update_unless_kept(config_path, plan):
    assert "slots (KV cache)" not in plan.phases["update"]
    kept = load(config_path, ["--config.sampling.keep_in_flight=true"])
    parts = memory.phase_memory(kept, plan.inputs, plan.compiled)["update"]
    assert parts["slots (KV cache)"] == device_bytes(plan.inputs.slots)


def test_adapters_have_little_state(config_path, plan, compiler):
    config = load(config_path, ["--config.lora.rank=2"])
    parts = planner.make_plan(config, plan.target, compiler, ()).phases["update"]
    assert parts["reference"] == plan.phases["update"]["reference"]
    assert 0 < parts["optimizer"] < plan.phases["update"]["optimizer"] / 2


def test_int8_matrices_are_planned(config_path, plan, compiler):
    """A layer's matrices are a quarter of those in float32, and an update's arrays the same.

    The tied embedding is there twice: once as it is, to look up tokens, and once in int8.
    """
    config = load(config_path, ["--config.sampling.weights=int8"])
    int8 = planner.make_plan(config, plan.target, compiler, ())
    kernels, float32_kernels = (
        sum(
            device_bytes(leaf)
            for name, leaf in named_leaves(planned.inputs.published).items()
            if name.endswith("kernel")
        )
        for planned in (int8, plan)
    )
    assert 4 * kernels == float32_kernels > 0
    shapes = int8.inputs.published
    dtypes = [shapes[name].dtype for name in ("embedding", "output_embedding")]
    assert dtypes == [jnp.float32, jnp.int8]
    for part in ("parameters", "optimizer", "reference"):
        assert int8.phases["update"][part] == plan.phases["update"][part]
    assumptions = times.assume(config, None, None)
    assert "sampled from int8 matrices" in report.plan_text(int8, assumptions)
    assert "sampled from float32 matrices" in report.plan_text(plan, assumptions)


def test_a_run_that_fits(monkeypatch, capsys, compiler, config_path):
    code, out = run(monkeypatch, capsys, compiler, "--config", config_path)
    assert code == 0
    assert out.splitlines()[-1].startswith("fits: peak ")
    assert "no bound" in out  # a CPU's peaks are not known
    assert "a GRPO step, forecast: " in out


def test_json_holds_the_same(monkeypatch, capsys, compiler, config_path, plan):
    code, out = run(monkeypatch, capsys, compiler, "--config", config_path, "--json")
    shown = json.loads(out)
    assert code == 0
    assert shown["fits"] is True
    assert shown["peak"] == plan.peak
    assert (
        shown["programs"]["update"]["cost"]["flops"]
        == plan.compiled["update"].cost.flops
    )
    assert shown["tried"] == []


def test_a_run_that_cannot_fit_says_what_was_tried(
    monkeypatch, capsys, compiler, config_path, plan
):
    arrays = memory.peak_phase(memory.phase_memory(plan.config, plan.inputs, {}))[1]
    between = (
        arrays + plan.peak
    ) / 2  # there is room for the arrays, not for the temporaries
    assert plan.compiled["update"].temporaries > plan.peak - between
    remedies = planner.remedies
    monkeypatch.setattr(
        planner, "remedies", lambda *arguments: remedies(*arguments)[:1]
    )
    code, out = run(
        monkeypatch,
        capsys,
        compiler,
        "--config",
        config_path,
        f"--memory={between / chips.GIB}",
    )
    assert code == 1
    assert "DOES NOT FIT: peak" in out
    assert "  --config.batch.micro_batch=1: " in out


def test_remedies_are_settings_that_can_still_change(config_path):
    *singles, together = planner.remedies(load(config_path), 1)
    assert [flag for flags in singles for flag in flags] == together
    assert ["--config.compute.remat=full"] in singles
    left = planner.remedies(load(config_path, together), 1)
    # There can always be fewer slots.
    assert [flags[0].split("=")[0] for flags in left] == ["--config.sampling.slots"]
    divided = ["--config.mesh.data=1", "--config.mesh.fsdp=-1"]
    assert divided in planner.remedies(load(config_path), 4)


def test_nothing_is_compiled_where_the_arrays_are_too_much(
    monkeypatch, capsys, config_path
):
    monkeypatch.setattr(compiled, "_compile", lambda *_: pytest.fail("compiled"))
    code, out = run(
        monkeypatch,
        capsys,
        compiled.Compiler(),
        "--config",
        config_path,
        "--memory=1e-6",
    )
    assert code == 1
    assert "DOES NOT FIT by its arrays alone: peak at least" in out
    assert "tried" in out
    code, out = run(
        monkeypatch, capsys, compiled.Compiler(), "--config", config_path, "--arrays"
    )
    assert code == 0
    assert "the arrays alone fit; nothing was compiled: peak at least" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no config file given"),
        (["--config", "CONFIG", "--topology=v5e"], "it must be like v5e:4x4"),
        (["--config", "CONFIG", "--topology=v9:2x2"], "it must be like v5e:4x4"),
        (["--config", "CONFIG", "--topology=v5p:2x2"], "it must be like v5e:4x4"),
        (["--config", "CONFIG", "--memory=many"], "invalid float value"),
        (["--config", "CONFIG", "--memory=0"], "it must be above 0"),
        (["--config", "CONFIG", "--kept=2"], "it must be above 0 and at most 1"),
        (
            ["--config", "CONFIG", "--mean-new=99"],
            "from 1 to sampling.max_new_tokens=8",
        ),
        (["--config", "CONFIG", "--nonsense"], "the flags are"),
        (
            ["--config", "CONFIG", "--config.model=no/such/Model-1B"],
            "the networks known by name are",
        ),
    ],
)
def test_bad_input_is_one_line(config_path, arguments, says):
    with pytest.raises(UserError, match=says):
        command.main(
            [argument.replace("CONFIG", config_path) for argument in arguments]
        )


def test_known_networks_are_found_by_the_folders_name():
    network = networks.find_network("somewhere/Qwen2.5-0.5B-Instruct")
    assert networks.count_parameters(network.config) == 494_032_768
    assert "there is no folder" in network.source


@pytest.mark.parametrize(
    "path",
    sorted((tiny_runs.ROOT / "configs").glob("*_v[56]*.py")),
    ids=lambda path: path.stem,
)
def test_configs_for_tpus_are_valid_and_say_where_they_fit(path):
    """Hardware is a topology, the network is known, and nothing is claimed that was not seen."""
    config = load(str(path))
    about = path.read_text(encoding="utf-8").split('"""')[1]
    topology = re.search(r"\((v\w+:[\dx]+)\)", about)[1]
    assert math.prod(chips.parse_topology(topology)[1]) >= 1
    assert f"--config configs/{path.name}" in about
    assert "ot yet run on it" in about
    name = Path(config.model).name
    assert {name, name.removesuffix("-Instruct")} & set(networks.known_networks())
    assert config.out == f"out/{path.stem}"


TEXT = """HloModule tiny

%body (state: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %state = (s32[], f32[4,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[4,8]{1,0} get-tuple-element(%state), index=1
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %gathered = f32[16,8]{1,0} all-gather(%x), channel_id=1, replica_groups=[1,4]<=[4], dimensions={0}
  %w = f32[8,16]{1,0} constant({...})
  %product = f32[4,4]{1,0} dot(%x, %gathered), lhs_contracting_dims={1}, rhs_contracting_dims={1}
  %again = f32[4,8]{1,0} dot(%product, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %both = (s32[], f32[4,8]{1,0}) tuple(%next, %again)
}

%condition (state.1: (s32[], f32[4,8])) -> pred[] {
  %state.1 = (s32[], f32[4,8]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %end = s32[] constant(6)
  ROOT %less = pred[] compare(%i.1, %end), direction=LT
}

ENTRY %main (x.1: f32[4,8]) -> f32[4,8] {
  %x.1 = f32[4,8]{1,0} parameter(0)
  %zero = s32[] constant(1)
  %begin = (s32[], f32[4,8]{1,0}) tuple(%zero, %x.1)
  %loop = (s32[], f32[4,8]{1,0}) while(%begin), condition=%condition, body=%body
  %out = f32[4,8]{1,0} get-tuple-element(%loop), index=1
  %permuted = f32[4,8]{1,0} collective-permute(%out), channel_id=2, \
source_target_pairs={{0,1},{1,0}}
  ROOT %sum = f32[4,8]{1,0:T(8,128)S(1)} all-reduce(%permuted), channel_id=3, \
replica_groups={{0,1},{2,3}}, to_apply=%add
}
"""
"""A loop from 1 to 6: its body runs 5 times."""


def test_collectives_are_counted_as_often_as_they_run():
    collectives = hlo.program_cost(TEXT).collectives
    assert collectives == {
        "all-gather": hlo.Collective(count=5, bytes=5 * 16 * 8 * 4 * 3 / 4),
        "collective-permute": hlo.Collective(count=1, bytes=4 * 8 * 4),
        "all-reduce": hlo.Collective(count=1, bytes=2 * 4 * 8 * 4 / 2),
    }
    once = hlo.program_cost(TEXT, count_loops=False)
    assert once.collectives["all-gather"].count == 1


def test_products_and_bytes_are_counted_as_often_as_they_run():
    body_flops = 2 * 4 * 4 * 8 + 2 * 4 * 8 * 4
    cost = hlo.program_cost(TEXT)
    once = hlo.program_cost(TEXT, count_loops=False)
    assert cost.flops == 5 * body_flops
    assert once.flops == body_flops
    without_loop = hlo.program_cost(TEXT.replace("constant(6)", "constant(1)")).bytes
    assert cost.bytes - without_loop == 5 * (once.bytes - without_loop)


def test_a_loop_that_counts_by_two_runs_half_as_often():
    by_two = TEXT.replace("%one = s32[] constant(1)", "%one = s32[] constant(2)")
    assert hlo.program_cost(by_two).collectives["all-gather"].count == 3


def test_a_loop_of_unknown_length_counts_once_and_is_said():
    cost = hlo.program_cost(TEXT.replace("direction=LT", "direction=NE"))
    assert cost.unknown_loops == 1
    assert cost.collectives["all-gather"].count == 1


def test_counts_agree_with_a_program_whose_work_is_known():
    """Seven products in a scan, and the compiler's own count of one."""
    repeats = 7
    width = 128

    def multiply(w, x):
        return jax.lax.scan(
            lambda x, _: (jnp.tanh(x @ w), None), x, None, length=repeats
        )[0]

    square = jax.ShapeDtypeStruct((width, width), jnp.float32)
    program = jax.jit(multiply).lower(square, square).compile()
    flops = repeats * 2 * width**3
    assert hlo.program_cost(program.as_text()).flops == flops
    assert (
        jaxpr_flops.written_flops(jax.make_jaxpr(multiply)(square, square), 1) == flops
    )
    once = hlo.program_cost(program.as_text(), count_loops=False)
    analysis = program.cost_analysis()
    assert once.flops <= analysis["flops"] <= 1.1 * once.flops
    assert analysis["bytes accessed"] == pytest.approx(once.bytes, rel=0.1)


def test_products_that_no_result_is_made_of_are_not_written():
    """Neither the gradient of a frozen matrix nor a loss that nobody asks for is computed."""
    gradient = jax.grad(lambda x, kernel: products.matmul(x, kernel).sum())
    x = jax.ShapeDtypeStruct((1, 4, 8), float)
    kernel = jax.ShapeDtypeStruct((8, 16), float)
    jaxpr = jax.make_jaxpr(gradient)(x, kernel)
    assert jaxpr_flops.written_flops(jaxpr, 1) == 2 * 4 * 8 * 16


def test_convolutions_that_are_batched_products():
    """Counts 4 products [16, 32] x [32, 8], as TPUs write them.

    The batch is a spatial axis whose window meets each input once.
    """
    text = """ENTRY %main (a: f32[4,16,32], b: f32[4,32,8]) -> f32[4,16,8] {
  %a = f32[4,16,32]{2,1,0} parameter(0)
  %b = f32[4,32,8]{2,1,0} parameter(1)
  ROOT %c = f32[4,16,8]{2,1,0} convolution(%a, %b), WINDOW, dim_labels=0bf_0io->0bf
}
"""
    window = "window={size=4 stride=3 pad=0_0 lhs_dilate=4}"
    assert hlo.program_cost(text.replace("WINDOW", window)).flops == 4 * 2 * 16 * 32 * 8


def test_the_compilers_refusal_is_read():
    message = (
        "Ran out of memory on HBM, the total memory required for HLO temporaries (20.50G) exceeds "
        "available HBM (15.75G)."
    )
    assert compiled.refused_bytes(message) == 20.5 * chips.GIB
    assert compiled.refused_bytes("Used 512.0M of 15.75G hbm. Exceeded") == 512 * 2**20
    assert compiled.refused_bytes("something else") is None


def test_what_binds_is_what_takes_longest(plan):
    v5e = chips.CHIPS["v5e"]
    gathers = {"all-gather": hlo.Collective(1, 200e9 * 3)}
    cost = hlo.Cost(flops=197e12, bytes=819e9 * 2, collectives=gathers)
    assert times.roofline(cost, v5e) == {"flops": 1.0, "hbm": 2.0, "ici": 3.0}
    programs = dict.fromkeys(planner.ALL_PROGRAMS, plan.compiled["update"])
    step = times.step_times(
        plan.config, plan.inputs, programs, v5e, times.Assumptions(8, 1.0)
    )
    rows = 8
    slots = plan.inputs.programs.slot_counts[0]
    assert step["decode"]["calls"] == max(8, math.ceil(rows * 8 / slots))
    assert step["update"]["calls"] == 1


def test_topologies():
    chip, shape = chips.parse_topology("v5p:2x4x4")
    assert chip.name == "v5p"
    assert math.prod(shape) == 32
    assert chip.cores * math.prod(shape) == 64  # sold as v5p-64
    ironwood, shape = chips.parse_topology("tpu7x:2x2x1")
    assert ironwood.devices * math.prod(shape) == 8
    assert ironwood.devices * ironwood.flops == 2307e12  # a chip's, as documented


def test_growth_is_a_table(plan):
    row = plan_growth.slice_row(plan)
    too_large = dataclasses.replace(row, limit=0.0)
    cost = plan_growth.CompiledCost(1.0, 2.0, {"flops": 3.0, "hbm": 1.0, "ici": 1.0})
    full = dataclasses.replace(row, compiled=cost)
    lines = plan_growth.markdown_table([too_large, full]).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert "does not fit" in lines[2]
    assert lines[3].endswith("| 25% |")
