"""The benchmarks run at a tiny size and say what they measured; the numbers themselves are for real sizes."""

import json

import pytest

from jaxgrpo.errors import UserError
from tools import bench

TINY = ["logprobs", "--rows", "2", "--length", "5", "--width", "4", "--vocab", "50", "--repeats", "1"]
MEASURED = {"temp_bytes", "naive_temp_bytes", "median_s", "naive_median_s"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logprobs_prints_one_json_object(capsys, dtype):
    bench.main([*TINY, "--dtype", dtype, "--json"])
    printed = capsys.readouterr()
    (line,) = printed.out.splitlines()
    result = json.loads(line)
    assert result.items() >= {"bench": "logprobs", "rows": 2, "length": 5, "width": 4, "vocab": 50, "dtype": dtype}.items()
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
