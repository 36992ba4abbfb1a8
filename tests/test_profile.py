"""Laws of profiles: no time is lost or counted twice, and each instruction has its kind."""

import json
from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from jax.profiler import ProfileData

from jaxgrpo.device.logprobs import chosen_logprobs
from jaxgrpo.device.token_sampling import next_token
from jaxgrpo.models import transformer
from jaxgrpo.models.transformer import SequenceInputs
from jaxgrpo.plan.hlo_text import parse
from jaxgrpo.text.tokenizer import Tokenizer
from jaxgrpo.types import SamplingParams
from tests.tiny_models import NETWORK, random_params
from tests.tiny_runs import config_file, share_programs
from tools.profile.__main__ import main, newest_trace
from tools.profile.events import event_name, read_trace
from tools.profile.kinds import ATTENTION, COLLECTIVE, LOGITS, PRODUCTS, uses_of
from tools.profile.shares import step_shares
from tools.profile.timeline import Interval, innermost, share_out, within

LOOP = ("decode", "other")
DOT = ("decode", "products")
SUM = ("decode", "collectives")
REST = ("host", "other")


def test_of_nested_intervals_the_innermost_has_the_time():
    pieces = innermost(
        [Interval(0, 10, LOOP), Interval(1, 4, DOT), Interval(2, 3, SUM)]
    )
    assert [(piece.start, piece.end, piece.label) for piece in pieces] == [
        (0, 1, LOOP),
        (1, 2, DOT),
        (2, 3, SUM),
        (3, 4, DOT),
        (4, 10, LOOP),
    ]


def test_threads_that_are_busy_at_once_share_the_time_and_gaps_are_the_rest():
    lines = [
        [Interval(0.0, 6.0, DOT), Interval(20.0, 30.0, DOT)],
        [Interval(4.0, 8.0, SUM)],
    ]
    times, gaps = share_out(lines, start=0.0, end=25.0)
    # From 4 to 6 there are two of them; what is after the end does not count.
    assert times == {DOT: 4 + 1 + 5, SUM: 1 + 2}
    assert gaps == [(8.0, 20.0)]


def test_a_loop_has_only_the_time_that_nothing_in_it_has():
    lines = [[Interval(0.0, 10.0, LOOP, is_container=True)], [Interval(2.0, 5.0, DOT)]]
    times, gaps = share_out(lines, start=0.0, end=10.0)
    assert times == {LOOP: 7, DOT: 3}
    assert not gaps


def test_idle_time_is_the_hosts_by_what_it_did():
    pieces = [Interval(1.0, 3.0, ("host", "a")), Interval(6.0, 9.0, ("host", "b"))]
    times = within(pieces, [(2.0, 7.0), (8.0, 8.5)], rest=REST)
    assert times == {("host", "a"): 1, ("host", "b"): 1.5, REST: 3}


def compiled_text(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().as_text()


def count_kinds(text):
    """Returns how many matrix products of a program's text are of each kind.

    Where one is fused with others, it is the fusion that runs and has a kind.
    """
    uses = uses_of(text)
    computations, _ = parse(text)
    fusions = {
        instruction.called("calls"): name
        for computation in computations.values()
        for name, instruction in computation.items()
    }
    return Counter(
        uses[fusions.get(place, name)].kind
        for place, computation in computations.items()
        for name, instruction in computation.items()
        if instruction.opcode == "dot"
    )


def test_products_of_the_network_and_of_attention_are_told_apart():
    tokens = jnp.ones((2, 5), jnp.int32)
    inputs = SequenceInputs(tokens, tokens, jnp.ones((2, 5, 5), bool))
    params = random_params(NETWORK)

    def loss(params):
        hidden, _ = transformer.forward(NETWORK, params, inputs)
        return hidden.sum()

    # Of each layer queries, keys, values, out, gate, up and down; scores and values.
    forward = count_kinds(compiled_text(loss, params))
    assert forward == {PRODUCTS: 7 * NETWORK.layers, ATTENTION: 2 * NETWORK.layers}
    # The gradient makes two products of each; all parts keep their scopes.
    backward = count_kinds(compiled_text(jax.grad(loss), params))
    assert backward[ATTENTION] == 3 * forward[ATTENTION]
    assert backward.keys() == forward.keys()


def test_logits_are_of_their_own_kind_where_they_are_drawn_from_and_scored():
    hidden = jnp.ones((2, 8))
    embedding = jnp.ones((10, 8))
    counts = jnp.zeros(2, jnp.int32)

    def draw(hidden, embedding):
        params = SamplingParams().as_arrays()
        return next_token(hidden, embedding, jnp.ones(2) / 2, counts, params, (1,))

    def score(hidden, embedding):
        tokens = jnp.zeros((2, 1), jnp.int32)
        return chosen_logprobs(hidden, embedding, tokens, 1.0)[0].sum()

    assert count_kinds(compiled_text(draw, hidden, embedding)).keys() == {LOGITS}
    gradient = jax.grad(score, argnums=(0, 1))
    text = compiled_text(gradient, hidden[:, None], embedding)
    assert count_kinds(text).keys() == {LOGITS}


def test_a_transfer_between_devices_is_a_collective():
    text = """HloModule jit_f

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %start = f32[8]{0} all-reduce-start(%a), to_apply=%add, metadata={op_name="jit(f)/attend"}
  ROOT %done = f32[8]{0} all-reduce-done(%start)
}
"""
    uses = uses_of(text)
    assert uses["start"].kind == uses["done"].kind == COLLECTIVE
    assert uses["a"].kind != COLLECTIVE


ACCELERATORS = """
planes {
  name: "/host:CPU"
  lines { name: "python" events { metadata_id: 1 offset_ps: 0 duration_ps: 9000000 } }
  event_metadata { key: 1 value { id: 1 name: "grpo_step" } }
}
planes {
  name: "/device:TPU:0"
  lines { name: "XLA Modules" events { metadata_id: 1 offset_ps: 1000000 duration_ps: 4000000 } }
  lines { name: "XLA Ops" events { metadata_id: 2 offset_ps: 2000000 duration_ps: 3000000 } }
  lines { name: "Async XLA Ops" events { metadata_id: 2 offset_ps: 0 duration_ps: 9000000 } }
  event_metadata { key: 1 value { id: 1 name: "jit_decode(123)" } }
  event_metadata { key: 2 value { id: 2 name: "%fusion.3 = f32[8]{0} fusion(%a)" } }
}
planes {
  name: "/device:GPU:0"
  lines {
    name: "Stream #7(Compute)"
    events {
      metadata_id: 1 offset_ps: 2000000 duration_ps: 3000000
      stats { metadata_id: 1 str_value: "loop_fusion" }
      stats { metadata_id: 2 str_value: "jit_update" }
    }
    events { metadata_id: 2 offset_ps: 6000000 duration_ps: 1000000 }
  }
  lines { name: "XLA Ops" events { metadata_id: 1 offset_ps: 2000000 duration_ps: 3000000 } }
  event_metadata { key: 1 value { id: 1 name: "kernel_1" } }
  event_metadata { key: 2 value { id: 2 name: "MemcpyD2H" } }
  stat_metadata { key: 1 value { id: 1 name: "hlo_op" } }
  stat_metadata { key: 2 value { id: 2 name: "hlo_module" } }
}
"""


class NoPrograms:
    """Stands in for LoadedPrograms: nothing is known of any program."""

    def uses(self, module, names):
        return {}


def test_events_of_accelerators_are_read_once(tmp_path):
    path = tmp_path / "host.xplane.pb"
    path.write_bytes(ProfileData.text_proto_to_serialized_xspace(ACCELERATORS))
    trace = read_trace(path)
    (tpu,) = trace.devices["/device:TPU:0"]
    assert [(e.module, e.version, e.name) for e in tpu] == [
        ("jit_decode", "123)", "fusion.3")
    ]
    (stream,) = trace.devices["/device:GPU:0"]
    assert [(e.module, e.name) for e in stream] == [
        ("jit_update", "loop_fusion"),
        ("", "MemcpyD2H"),
    ]
    # Each device has the 9 microseconds of the step.
    shares = step_shares(trace, NoPrograms())
    assert shares["decode"]["other"] == pytest.approx(3 / 18)
    assert shares["update"]["other"] == pytest.approx(3 / 18)
    assert shares["other programs"]["other"] == pytest.approx(1 / 18)
    assert shares["host"]["other"] == pytest.approx(11 / 18)


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    """Returns the folder of a profile of a tiny run."""
    folder = tmp_path_factory.mktemp("profile")
    with pytest.MonkeyPatch.context() as monkeypatch:
        share_programs(monkeypatch)
        main(["--config", config_file(folder), "--to", str(folder / "to")])
    return folder


def test_a_profile_shares_out_all_of_a_warm_step(profiled):
    profile = json.loads((profiled / "to" / "profile.json").read_text())
    shares = profile["shares"]
    assert sum(sum(kinds.values()) for kinds in shares.values()) == pytest.approx(1)
    assert shares.keys() >= {"publish", "prefill", "insert", "decode", "update", "host"}
    assert shares["decode"].keys() >= {PRODUCTS, ATTENTION, LOGITS}
    assert shares["update"].keys() >= {PRODUCTS, ATTENTION, LOGITS}
    assert profile["compiles"] == 0
    table = (profiled / "to" / "profile.md").read_text()
    assert all(f"| {program} |" in table for program in shares if program != "host")
    rate = profile["rates"]["perf/flops_per_s"]
    assert rate["of_measured"] == pytest.approx(
        rate["value"] / profile["measured"]["perf/flops_per_s"]
    )
    assert rate["of_nominal"] is None


def test_a_profile_leaves_a_trace_and_nothing_of_the_run(profiled):
    path = newest_trace(profiled / "to")
    assert (path.parent / "perfetto_trace.json.gz").stat().st_size > 1000
    names = {call.name for call in read_trace(path).host}
    assert event_name(Tokenizer.completion) in names
    assert not (profiled / "out").exists()
