"""The benchmarks run at a tiny size, and say what they measured.

The numbers themselves are for real sizes.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from jaxgrpo.errors import UserError
from jaxgrpo.models import transformer
from tests.tiny_models import NETWORK, make_folder
from tests.tiny_runs import config_file, share_programs
from tools.bench import __main__ as bench
from tools.bench import evaluation
from tools.bench.work import step_work

TINY = [
    "logprobs",
    "--rows",
    "2",
    "--length",
    "5",
    "--width",
    "4",
    "--vocab",
    "50",
    "--repeats",
    "1",
]
MEASURED = {"temp_bytes", "naive_temp_bytes", "median_s", "naive_median_s"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logprobs_prints_one_json_object(capsys, dtype):
    bench.main([*TINY, "--dtype", dtype, "--json"])
    printed = capsys.readouterr()
    (line,) = printed.out.splitlines()
    result = json.loads(line)
    expected = {
        "bench": "logprobs",
        "rows": 2,
        "length": 5,
        "width": 4,
        "vocab": 50,
        "dtype": dtype,
    }
    assert result.items() >= expected.items()
    assert all(result[name] > 0 for name in MEASURED)
    assert "turn 1 of 1: naive" in printed.err


def test_compile_only_measures_memory_alone(capsys):
    bench.main([*TINY, "--compile-only", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result.keys() & MEASURED == {"temp_bytes", "naive_temp_bytes"}


def test_without_json_it_is_a_line_to_read(capsys):
    bench.main(TINY)
    (line,) = capsys.readouterr().out.splitlines()
    assert "vocab=50" in line
    assert "naive_median_s=" in line


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(UserError, match="--length 1 leaves nothing to choose"):
        bench.main([*TINY[:3], "--length", "1"])
    with pytest.raises(SystemExit):
        bench.main([*TINY, "--repeats", "0"])


SMALL = [
    "--groups",
    "2",
    "--group-size",
    "4",
    "--prompt",
    "6",
    "--new",
    "8",
    "--chunk",
    "3",
    "--repeats",
    "1",
    "--json",
]
RATES = {
    "median_s",
    "tokens_per_s",
    "matmul_flops_per_s",
    "copy_bytes_per_s",
    "floor_s",
    "compiles",
    "compile_s",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(
        make_folder(tmp_path_factory.mktemp("bench") / "model", num_hidden_layers=1)
    )


def measured(capsys, *argv: str) -> dict:
    """Returns what a subcommand that samples printed, after checking what all of them print."""
    bench.main([argv[0], *SMALL, *argv[1:]])
    (line,) = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    assert result["what"] == result["bench"] == argv[0]
    assert len(result["seconds"]) == 1
    assert all(result[name] > 0 for name in RATES)
    assert 0 < result["utilisation"] <= 1
    assert result["recompiles"] == 0
    return result


def test_steps_can_keep_what_is_in_flight(model, capsys):
    flags = ("--mean-new", "3", "--slots", "4", "--keep-in-flight")
    result = measured(capsys, "rollout", "--model", model, *flags)
    assert result["in_flight_tokens_per_s"] > 0
    assert result["utilisation"] < result["in_flight_utilisation"] <= 1
    assert result["in_flight_s"] > 0
    assert result["recompiles"] == 0


def test_rollout_says_what_it_measured(model, capsys):
    result = measured(capsys, "rollout", "--model", model)
    assert result["utilisation"] == 1
    assert result["tokens_per_s"] == pytest.approx(2 * 4 * 8 / result["median_s"])


def test_lengths_that_differ_are_also_timed_batch_by_batch(model, capsys):
    # Another chunk: what an earlier test has compiled is not compiled anew, and not counted.
    flags = ("--mean-new", "3", "--slots", "4", "--chunk", "4")
    result = measured(capsys, "rollout", "--model", model, *flags)
    assert result["batch_by_batch_s"] > 0
    assert result["tokens_per_s"] < 2 * 4 * 8 / result["median_s"]


def test_a_step_samples_and_updates(model, capsys):
    result = measured(capsys, "step", "--model", model, "--micro-batch", "4")
    assert 0 < result["update_s"] < result["median_s"]
    assert 0 < result["rollout_s"] < result["median_s"]


def test_a_step_on_bins_is_timed_beside_the_other(model, capsys):
    result = measured(
        capsys,
        "step",
        "--model",
        model,
        "--micro-batch",
        "4",
        "--mean-new",
        "3",
        "--pack",
        "28",
    )
    assert 0 < result["packed_update_s"] < result["packed_s"]
    assert result["packed_update_utilisation"] > result["update_utilisation"] > 0


def test_the_work_of_a_step_counts_prompts_in_rows_that_are_sampled_and_once_a_group():
    lengths = np.full((8, 8), 128)
    work = step_work(NETWORK, 64, lengths, 64, 4)
    sampled = 64 * (64 + 128)
    learned = 8 * 64 + 64 * 128
    parameters = transformer.parameter_count(transformer.shapes(NETWORK))
    assert work.flops == parameters * (2 * sampled + 8 * learned)
    assert work.floor_s(1e9, 1e30) == work.flops / 1e9
    assert work.floor_s(1e30, 1e9) == work.bytes / 1e9


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["rollout", "--slots", "6"], "--slots is 6: it must be a multiple of 4"),
        (
            ["step", "--micro-batch", "3"],
            "--groups times --group-size is 8: it must be a multiple of 3",
        ),
        (["rollout", "--mean-new", "9"], "--mean-new 9 is more than --new 8"),
        (["step", "--pack", "13"], r"--pack 13 is less than --prompt \+ --new = 14"),
    ],
)
def test_numbers_that_do_not_go_together_are_refused(model, argv, message):
    with pytest.raises(UserError, match=message):
        bench.main([*argv, "--model", model, *SMALL])


def test_rewards_counts_verdicts(capsys):
    bench.main(
        ["rewards", "--verdicts", "35", "--workers", "1", "--repeats", "2", "--json"]
    )
    result = json.loads(capsys.readouterr().out)
    expected = {"bench": "rewards", "verdicts": 40, "workers": 1, "repeats": 2}
    assert result.items() >= expected.items()
    assert len(result["seconds"]) == 2
    assert result["verdicts_per_s"] == pytest.approx(40 / result["median_s"])


def test_evaluate_is_timed_beside_the_engine_alone(tmp_path, monkeypatch, capsys):
    """So are runs that are evaluated every second step, and others that are not."""
    share_programs(monkeypatch)
    trained = []

    def train(config):
        assert not Path(config.out).exists()
        trained.append((config.steps, config.evaluation.every, config.quiet))
        yield {"step": 1}

    monkeypatch.setattr(evaluation, "train", train)
    # A random network of one layer samples faster than its completions can be judged.
    monkeypatch.setattr(evaluation, "MAX_RATIO", math.inf)
    monkeypatch.setattr(evaluation, "MAX_RUN_RATIO", math.inf)
    flags = ("--every", "2", "--steps", "5", "--problems", "4", "--samples", "2")
    argv = ["evaluate", "--config", config_file(tmp_path), *flags, "--repeats", "1"]
    bench.main([*argv, "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["ratio"] == result["median_s"] / result["engine_s"]
    assert result["run_ratio"] == result["evaluated_run_s"] / result["run_s"]
    assert 8 <= result["tokens"] <= 8 * 8
    assert result["recompiles"] == 0
    assert result["within"] is True
    assert trained == [(5, 0, True), (5, 2, True)] * 2
    # Nothing is left behind.
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.py"}


def test_an_evaluation_that_takes_too_long_is_too_much():
    seconds = {"evaluate": [3.0, 1.2, 1.2], "engine": [1.0, 1.0, 9.0]}
    assert evaluation.summarise(seconds, 6) == {
        "seconds": [3.0, 1.2, 1.2],
        "median_s": 1.2,
        "engine_s": 1.0,
        "tokens": 6,
        "engine_tokens_per_s": 6.0,
        "ratio": 1.2,
        "within": False,
    }
    seconds |= {"evaluate": [1.0], "engine": [1.0], "run": [2.0]}
    slow = evaluation.summarise(seconds | {"evaluated_run": [2.7]}, 6)
    assert (slow["run_ratio"], slow["within"]) == (1.35, False)
    quick = evaluation.summarise(seconds | {"evaluated_run": [2.5]}, 6)
    assert (quick["run_ratio"], quick["within"]) == (1.25, True)
