"""A run's parameters leave as a Hugging Face folder; what is wrong with a run is one line and exit code 2."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxgrpo.checkpoint import Checkpoints
from jaxgrpo.command_line import run_main
from jaxgrpo.mesh import make_mesh, named_leaves
from jaxgrpo.models import transformer, weights
from jaxgrpo.optimizer import adamw, schedule
from jaxgrpo.steps import compile_steps
from tests.tiny_models import make_folder, random_params
from tools import export


@pytest.fixture(scope="session", params=[False, True], ids=["layer by layer", "layers stacked"])
def run(request, tmp_path_factory):
    """What a run leaves behind: config.json and a checkpoint of step 3, with other parameters than its model's."""
    folder = tmp_path_factory.mktemp("run")
    model = make_folder(folder / "model", tie_word_embeddings=False)
    config = weights.load_config(model)
    optimizer = adamw(schedule("constant", 1e-3, 0, 10), 0.9, 0.95, 0.1, 1.0)
    shapes = {"prompt_width": 4, "new_tokens": 4, "micro_batch": 0, "ends": (1,), "slots": 1}
    steps = compile_steps(config, optimizer, make_mesh(), scan_layers=request.param, **shapes)
    state = steps.init(random_params(config, seed=9))
    out = folder / "out"
    with Checkpoints(out, keep=1) as checkpoints:
        checkpoints.save(3, state, {})
    compute = {"compute": {"scan_layers": True}} if request.param else {}  # runs of before have no such setting
    (out / "config.json").write_text(json.dumps({"model": str(model)} | compute))
    return out, transformer.unstack(jax.device_get(state.params))


def call(monkeypatch, run: Path, target: Path):
    """The program's exit code."""
    monkeypatch.setattr(sys, "argv", ["tools.export", "--run", str(run), "--to", str(target)])
    try:
        run_main(export.main)
    except SystemExit as end:
        return end.code
    return 0


def test_what_is_exported_is_what_was_trained(run, tmp_path, monkeypatch, capsys):
    out, params = run
    target = tmp_path / "exported"
    assert call(monkeypatch, out, target) == 0
    assert f"{target}: step 3 of {out}" in capsys.readouterr().out
    for path, leaf in named_leaves(weights.load_params(target)).items():
        np.testing.assert_array_equal(leaf, named_leaves(params)[path], err_msg=path)
    model = Path(json.loads((out / "config.json").read_text())["model"])
    for name in ("config.json", "tokenizer_config.json", "tokenizer.model"):
        assert (target / name).read_bytes() == (model / name).read_bytes()


def copied(out, folder, **config):
    """Another run's config.json, without checkpoints."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(json.loads((out / "config.json").read_text()) | config))
    return folder


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda out, here: (here, here / "new"), "holds no run (no config.json): give the --config.out"),
        (lambda out, here: (copied(out, here / "run"), here / "new"), "there is no checkpoint"),
        (lambda out, here: (out, here), "is there already: name a folder that is not"),
        (lambda out, here: (copied(out, here / "run", model="/nowhere"), here / "new"), "/nowhere is not there"),
    ],
    ids=["no run", "no checkpoint", "target exists", "no model"],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(run, tmp_path, monkeypatch, capsys, make, message):
    source, target = make(run[0], tmp_path)
    before = set(tmp_path.rglob("*"))
    assert call(monkeypatch, source, target) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert set(tmp_path.rglob("*")) == before


def test_a_damaged_config_is_one_line_too(run, tmp_path, monkeypatch, capsys):
    for text in ("{", "[]", "{}"):
        (tmp_path / "config.json").write_text(text)
        assert call(monkeypatch, tmp_path, tmp_path / "new") == 2
        assert "config.json" in capsys.readouterr().err
