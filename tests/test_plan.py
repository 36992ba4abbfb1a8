"""Laws of tools.plan: parts sum, shapes agree with the compiler, loops count as often as they run, what cannot fit says so."""

import json
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxgrpo.models import products
from jaxgrpo.config import load
from jaxgrpo.distributed.mesh import device_bytes
from jaxgrpo.errors import UserError
from jaxgrpo.models import transformer
from jaxgrpo.plan import __main__ as plan
from jaxgrpo.plan import chips, hlo, memory
from jaxgrpo.plan import compiled as plan_programs
from jaxgrpo.plan import times as plan_time
from tests import tiny_runs
from tools import plan_growth


@pytest.fixture(scope="module")
def compiler():
    """What one test has compiled the others need not."""
    return plan_programs.Compiler()


@pytest.fixture(scope="module")
def config_path(tmp_path_factory):
    return tiny_runs.config_file(tmp_path_factory.mktemp("plan"))


@pytest.fixture(scope="module")
def planned(config_path, compiler):
    config = load(config_path)
    return plan.make_plan(config, plan.make_place(config, None, None), compiler)


def run(monkeypatch, capsys, compiler, *arguments: str) -> tuple[int, str]:
    """The exit code and what is printed; programs are compiled once for all tests."""
    monkeypatch.setattr(plan, "Compiler", lambda say: compiler)
    try:
        plan.main(list(arguments))
        code = 0
    except SystemExit as left:
        code = left.code
    return code, capsys.readouterr().out


def test_parts_sum_to_what_is_shown(planned):
    lines = memory.table(planned.phases)
    parts, together = [line.split()[-len(planned.phases) :] for line in lines[1:-1]], lines[-1]
    assert together.startswith("together")
    assert len(parts) >= 6
    name, peak = memory.peak(planned.phases)
    assert (
        peak
        == sum(planned.phases[name].values())
        == max(sum(phase.values()) for phase in planned.phases.values())
    )


@pytest.mark.parametrize("name", plan.ALL)
def test_shapes_are_as_large_as_the_compiler_says(planned, name):
    """What a program's arguments take by their shapes and shardings is what the compiler counts, but for what comes from the
    host with each call."""
    leaves = jax.tree.leaves(planned.given.calls[name][1])
    from_host = [leaf for leaf in leaves if not getattr(leaf, "sharding", None)]
    most = sum(math.prod(jnp.shape(leaf)) * 8 + 8 for leaf in from_host)
    program = planned.compiled[name]
    assert program.shapes <= program.arguments + 8 * len(leaves)
    assert program.arguments <= program.shapes + most


def test_a_program_needs_its_arguments_and_what_the_phase_says(planned):
    update, parts = planned.compiled["update"], planned.phases["update"]
    held = sum(parts[part] for part in ("parameters", "optimizer", "reference", "batch"))
    assert abs(held - update.arguments) < 256
    assert parts["temporaries"] == update.temporaries
    assert parts["results"] < update.arguments / 10  # the state is updated in place


def test_slots_are_given_back_before_an_update_unless_kept(config_path, planned):
    assert "slots (KV cache)" not in planned.phases["update"]
    kept = load(config_path, ["--config.sampling.keep_in_flight=true"])
    parts = memory.phases(kept, planned.given, planned.compiled)["update"]
    assert parts["slots (KV cache)"] == device_bytes(planned.given.slots)


def test_adapters_have_little_state(config_path, planned, compiler):
    config = load(config_path, ["--config.lora.rank=2"])
    parts = plan.make_plan(config, planned.place, compiler, ()).phases["update"]
    assert parts["reference"] == planned.phases["update"]["reference"]
    assert 0 < parts["optimizer"] < planned.phases["update"]["optimizer"] / 2


def test_a_run_that_fits(monkeypatch, capsys, compiler, config_path):
    code, out = run(monkeypatch, capsys, compiler, "--config", config_path)
    assert code == 0
    assert out.splitlines()[-1].startswith("fits: peak ")
    assert "no times" in out  # a CPU's peaks are not known


def test_json_holds_the_same(monkeypatch, capsys, compiler, config_path, planned):
    code, out = run(monkeypatch, capsys, compiler, "--config", config_path, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["fits"] is True
    assert found["peak"] == planned.peak
    assert found["programs"]["update"]["cost"]["flops"] == planned.compiled["update"].cost.flops
    assert found["tried"] == []


def test_a_run_that_cannot_fit_says_what_was_tried(
    monkeypatch, capsys, compiler, config_path, planned
):
    arrays = memory.peak(memory.phases(planned.config, planned.given, {}))[1]
    between = (arrays + planned.peak) / 2  # there is room for the arrays, not for the temporaries
    assert planned.compiled["update"].temporaries > planned.peak - between
    every = plan.remedies
    monkeypatch.setattr(plan, "remedies", lambda *given: every(*given)[:1])
    code, out = run(
        monkeypatch, capsys, compiler, "--config", config_path, f"--memory={between / chips.GIB}"
    )
    assert code == 1
    assert "DOES NOT FIT: peak" in out
    assert "  --config.batch.micro_batch=1: " in out


def test_remedies_are_settings_that_can_still_change(config_path):
    every = plan.remedies(load(config_path), 1)
    assert [flag for flags in every[:-1] for flag in flags] == every[
        -1
    ]  # each alone, then all together
    assert ["--config.compute.remat=full"] in every
    left = plan.remedies(load(config_path, every[-1]), 1)
    assert [flags[0].split("=")[0] for flags in left] == [
        "--config.sampling.slots"
    ]  # there are always fewer
    assert ["--config.mesh.data=1", "--config.mesh.fsdp=-1"] in plan.remedies(load(config_path), 4)


def test_nothing_is_compiled_where_the_arrays_are_too_much(monkeypatch, capsys, config_path):
    monkeypatch.setattr(plan_programs, "_compile", lambda *_: pytest.fail("compiled"))
    code, out = run(
        monkeypatch, capsys, plan_programs.Compiler(), "--config", config_path, "--memory=1e-6"
    )
    assert code == 1
    assert "DOES NOT FIT by its arrays alone: peak at least" in out
    assert "tried" in out
    code, out = run(
        monkeypatch, capsys, plan_programs.Compiler(), "--config", config_path, "--arrays"
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
        (["--config", "CONFIG", "--mean-new=99"], "from 1 to sampling.max_new_tokens=8"),
        (["--config", "CONFIG", "--nonsense"], "the flags are"),
        (
            ["--config", "CONFIG", "--config.model=no/such/Model-1B"],
            "the networks known by name are",
        ),
    ],
)
def test_bad_input_is_one_line(config_path, arguments, says):
    with pytest.raises(UserError, match=says):
        plan.main([argument.replace("CONFIG", config_path) for argument in arguments])


def test_known_networks_are_found_by_the_folders_name():
    found = plan_programs.network("somewhere/Qwen2.5-0.5B-Instruct")
    assert plan_programs.parameters(found.config) == 494_032_768
    assert "there is no folder" in found.source


@pytest.mark.parametrize(
    "path", sorted((tiny_runs.ROOT / "configs").glob("*_v[56]*.py")), ids=lambda path: path.stem
)
def test_configs_for_tpus_are_valid_and_say_where_they_fit(path):
    """Their hardware is a topology, their network is known, and they claim nothing that was not seen."""
    config = load(str(path))
    about = path.read_text(encoding="utf-8").split('"""')[1]
    topology = re.search(r"\((v\w+:[\dx]+)\)", about)[1]
    assert math.prod(chips.parse(topology)[1]) >= 1
    assert f"--config configs/{path.name}" in about
    assert "ot yet run on it" in about
    assert {Path(config.model).name, Path(config.model).name.removesuffix("-Instruct")} & set(
        plan_programs.known()
    )
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
  %permuted = f32[4,8]{1,0} collective-permute(%out), channel_id=2, source_target_pairs={{0,1},{1,0}}
  ROOT %sum = f32[4,8]{1,0:T(8,128)S(1)} all-reduce(%permuted), channel_id=3, replica_groups={{0,1},{2,3}}, to_apply=%add
}
"""
"""A loop from 1 to 6: its body runs 5 times."""


def test_collectives_are_counted_as_often_as_they_run():
    found = hlo.cost(TEXT).collectives
    assert (found["all-gather"].count, found["all-gather"].bytes) == (5, 5 * 16 * 8 * 4 * 3 / 4)
    assert (found["collective-permute"].count, found["collective-permute"].bytes) == (1, 4 * 8 * 4)
    assert (found["all-reduce"].count, found["all-reduce"].bytes) == (1, 2 * 4 * 8 * 4 / 2)
    assert hlo.cost(TEXT, loops=False).collectives["all-gather"].count == 1


def test_products_and_bytes_are_counted_as_often_as_they_run():
    each = 2 * 4 * 4 * 8 + 2 * 4 * 8 * 4
    assert hlo.cost(TEXT).flops == 5 * each
    assert hlo.cost(TEXT, loops=False).flops == each
    rest = hlo.cost(TEXT.replace("constant(6)", "constant(1)")).bytes
    assert hlo.cost(TEXT).bytes - rest == 5 * (hlo.cost(TEXT, loops=False).bytes - rest)


def test_a_loop_that_counts_by_two_runs_half_as_often():
    by_two = TEXT.replace("%one = s32[] constant(1)", "%one = s32[] constant(2)")
    assert hlo.cost(by_two).collectives["all-gather"].count == 3


def test_a_loop_of_unknown_length_counts_once_and_is_said():
    found = hlo.cost(TEXT.replace("direction=LT", "direction=NE"))
    assert found.unknown_loops == 1
    assert found.collectives["all-gather"].count == 1


def test_counts_agree_with_a_program_whose_work_is_known():
    """Seven products in a scan, and the compiler's own count of one."""
    times, width = 7, 128

    def f(w, x):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=times)[0]

    square = jax.ShapeDtypeStruct((width, width), jnp.float32)
    compiled = jax.jit(f).lower(square, square).compile()
    assert hlo.cost(compiled.as_text()).flops == times * 2 * width**3
    assert plan_programs.written_flops(jax.make_jaxpr(f)(square, square), 1) == times * 2 * width**3
    once, own = hlo.cost(compiled.as_text(), loops=False), compiled.cost_analysis()
    assert once.flops <= own["flops"] <= 1.1 * once.flops
    assert own["bytes accessed"] == pytest.approx(once.bytes, rel=0.1)


def test_products_that_no_result_is_made_of_are_not_written():
    """Of a frozen matrix the gradient is not computed, nor is a loss that nobody asks for."""
    gradient = jax.grad(lambda x, kernel: products.matmul(x, kernel).sum())
    x, kernel = jax.ShapeDtypeStruct((1, 4, 8), float), jax.ShapeDtypeStruct((8, 16), float)
    jaxpr = jax.make_jaxpr(gradient)(x, kernel)
    assert plan_programs.written_flops(jaxpr, 1) == 2 * 4 * 8 * 16


def test_convolutions_that_are_batched_products():
    """As TPUs write one: 4 products [16, 32] x [32, 8], the batch being a spatial axis whose window meets each input once."""
    text = """ENTRY %main (a: f32[4,16,32], b: f32[4,32,8]) -> f32[4,16,8] {
  %a = f32[4,16,32]{2,1,0} parameter(0)
  %b = f32[4,32,8]{2,1,0} parameter(1)
  ROOT %c = f32[4,16,8]{2,1,0} convolution(%a, %b), window={size=4 stride=3 pad=0_0 lhs_dilate=4}, dim_labels=0bf_0io->0bf
}
"""
    assert hlo.cost(text).flops == 4 * 2 * 16 * 32 * 8


def test_the_compilers_refusal_is_read():
    message = "Ran out of memory on HBM, the total memory required for HLO temporaries (20.50G) exceeds available HBM (15.75G)."
    assert plan_programs.wanted_bytes(message) == 20.5 * chips.GIB
    assert plan_programs.wanted_bytes("Used 512.0M of 15.75G hbm. Exceeded") == 512 * 2**20
    assert plan_programs.wanted_bytes("something else") is None


def test_what_binds_is_what_takes_longest(planned):
    cost = hlo.Cost(
        flops=197e12, bytes=819e9 * 2, collectives={"all-gather": hlo.Collective(1, 200e9 * 3)}
    )
    assert plan_time.bounds(cost, chips.CHIPS["v5e"]) == {"flops": 1.0, "hbm": 2.0, "ici": 3.0}
    compiled = dict.fromkeys(plan.ALL, planned.compiled["update"])
    found = plan_time.step(
        planned.config, planned.given, compiled, chips.CHIPS["v5e"], plan_time.Assumed(8, 1.0)
    )
    rows, slots = 8, planned.given.steps.sizes[0]
    assert found["decode"]["calls"] == math.ceil(rows * 8 / slots)
    assert found["update"]["calls"] == 1


def test_topologies():
    chip, shape = chips.parse("v5p:2x4x4")
    assert (chip.name, math.prod(shape), chip.cores * math.prod(shape)) == (
        "v5p",
        32,
        64,
    )  # sold as v5p-64


def test_growth_is_a_table(planned):
    found = plan_growth.row(planned)
    full = found | {"flops": 1.0, "ici": 2.0, "bounds": {"flops": 3.0, "hbm": 1.0, "ici": 1.0}}
    lines = plan_growth.table([found | {"memory": 0.0}, full]).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert "does not fit" in lines[2]
    assert lines[3].endswith("| 25% |")
