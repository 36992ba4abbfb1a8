"""What a run prints at its start says what it will do, in lines that fit."""

from dataclasses import replace

import pytest

from jaxgrpo.build import build_run
from jaxgrpo.console import WIDTH
from jaxgrpo.models.transformer import parameter_count
from jaxgrpo.overview import overview
from tests.tiny_runs import make_config, share_programs


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        share_programs(monkeypatch)
        with build_run(make_config(tmp_path_factory.mktemp("run"))) as run:
            yield run


def test_it_says_what_the_run_will_do(run):
    text = overview(run)
    said = " ".join(text.split())
    parameters = parameter_count(run.programs.params_like)
    for part in (
        "devices 1 x cpu",
        f"{parameters:,} parameters, 1 layer, float32",
        "data Arithmetic, 24 problems to train on; evaluated on 6 held out, 4 samples each",
        "rewards 1 accuracy (solved), 1 language",
        "batch 2 prompts x 4 = 8 rows a step, 1 update of 8 rows",
        "update GRPO, learning rate 0.01 constant, 4 steps",
        run.config.out,
    ):
        assert part in said, text


def test_its_lines_fit(run):
    """But for paths, which nobody should have to put together again."""
    long = replace(
        run.config,
        rewards=dict.fromkeys(map(str, range(40)), run.config.rewards["language"]),
    )
    for line in overview(replace(run, config=long)).splitlines():
        assert len(line) <= WIDTH or "/" in line
