"""Laws of the work of a step, and of the rates that every run logs."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxgrpo import performance
from jaxgrpo.performance import PEAKS, Peak, Work, rates, sampling_work, update_flops
from jaxgrpo.plan.chips import CHIPS
from jaxgrpo.rollout.protocols import SamplingUsage
from tests.tiny_models import NETWORK
from tests.tiny_rollouts import make_sampled_group

USAGE = SamplingUsage(
    tokens=7, prompt_tokens=5, steps=4.0, context_tokens=11.0, weight_bytes=100
)


def test_sampling_multiplies_each_token_once_and_reads_weights_at_each_step():
    work = sampling_work(NETWORK, parameters=1000, usage=USAGE, itemsize=4)
    assert work.flops == 2 * 1000 * (7 + 5)
    keys_and_values = 2 * NETWORK.layers * NETWORK.kv_heads * NETWORK.head_width * 4
    assert work.bytes == 4 * 100 + 11 * keys_and_values


def test_devices_share_products_and_caches_but_not_what_each_has_of_the_weights():
    alone = sampling_work(NETWORK, 1000, USAGE, itemsize=4)
    shared = sampling_work(NETWORK, 1000, USAGE, itemsize=4, devices=2)
    assert shared.flops == alone.flops / 2
    assert shared.bytes - 400 == (alone.bytes - 400) / 2


def test_an_update_of_everything_costs_six_a_parameter_and_token():
    assert update_flops(10, parameters=100, trained=100, scored=0) == 6 * 100 * 10
    # Adapters need the gradients of activations all the same.
    assert update_flops(10, parameters=100, trained=1, scored=0) == 402 * 10
    # The reference reads the batch once, however often it is gone over.
    twice = update_flops(10, parameters=100, trained=100, scored=100, passes=2.0)
    assert twice == (2 * 600 + 200) * 10


def test_rates_are_work_over_time_and_shares_are_rates_over_peak():
    sampling = Work(flops=40.0, bytes=60.0)
    unknown = rates(sampling, 100.0, step_seconds=4.0, decode_seconds=3.0, peak=None)
    assert unknown == {"perf/flops_per_s": 25.0, "perf/decode_bandwidth": 20.0}
    known = rates(
        sampling, 100.0, step_seconds=4.0, decode_seconds=3.0, peak=Peak(50.0, 200.0)
    )
    assert known == unknown | {"perf/mfu": 0.5, "perf/mbu": 0.1}


def test_a_step_in_which_nothing_was_decoded_has_no_bandwidth():
    nothing = rates(
        Work(0.0, 0.0), 0.0, step_seconds=1.0, decode_seconds=0.0, peak=None
    )
    assert nothing["perf/decode_bandwidth"] == 0.0


def test_peaks_are_those_of_the_plan_and_a_cpu_has_none():
    v5e = CHIPS["v5e"]
    assert PEAKS["TPU v5 lite"] == (v5e.flops, v5e.bandwidth)
    assert jax.devices("cpu")[0].device_kind not in PEAKS


def test_a_prompt_counts_once_for_its_group():
    # Two rows: a prompt of 2 tokens in 3 columns, completions of 1 and 3 tokens.
    completion = np.array([[0, 0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1, 0]], bool)
    prompt = np.array([[0, 1, 1, 0, 0, 0, 0]] * 2, bool)
    group = replace(
        make_sampled_group("p", size=2),
        attention_mask=prompt | completion,
        completion_mask=completion,
    )
    assert performance.batch_tokens([group, group]) == 2 * (2 + 1 + 3)


def test_floor_is_the_longer_of_arithmetic_and_memory():
    assert Work(flops=10.0, bytes=6.0).floor_s(5.0, 1.0) == pytest.approx(6.0)
    assert Work(flops=40.0, bytes=6.0).floor_s(5.0, 1.0) == pytest.approx(8.0)
