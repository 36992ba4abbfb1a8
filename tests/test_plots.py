"""Curves of a run's metrics."""

import numpy as np
import pytest

from jaxgrpo import plots
from jaxgrpo.metrics import Writer


def test_running_mean_skips_what_is_missing():
    values = np.array([1.0, np.nan, 3.0, 5.0, np.nan, np.nan])
    np.testing.assert_allclose(plots.running_mean(values, 2), [1, 1, 3, 4, 5, np.nan])


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    assert plots.plot(tmp_path) is None
    with Writer(tmp_path) as writer:
        writer.write(0, {"reward/accuracy": 0.5, "policy/kl": float("nan")})
        writer.write(1, {"policy/entropy": 0.5})
    (tmp_path / "summary.json").write_text(
        '{"before": {"reward/accuracy": 0.1}, "after": {"reward/accuracy": 0.2}}'
    )
    assert plots.plot(tmp_path).read_bytes().startswith(b"\x89PNG")
