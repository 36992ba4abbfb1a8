"""A run's parameters leave as a Hugging Face folder; errors are one line and exit code 2."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxgrpo import export
from jaxgrpo.config.command_line import run_main
from jaxgrpo.distributed.mesh import named_leaves
from jaxgrpo.models import hf_folder
from jaxgrpo.models.lora import Lora
from tests.tiny_runs import leave_run

LORA = Lora(2, 3.0, ("query", "down"))


@pytest.fixture(
    scope="session", params=[False, True], ids=["layer by layer", "layers stacked"]
)
def run(request, tmp_path_factory):
    return leave_run(tmp_path_factory.mktemp("run"), stacked=request.param)


@pytest.fixture(
    scope="session", params=[False, True], ids=["layer by layer", "layers stacked"]
)
def lora_run(request, tmp_path_factory):
    return leave_run(
        tmp_path_factory.mktemp("lora"), "Qwen2ForCausalLM", LORA, request.param
    )


def call(monkeypatch, run: Path, target: Path, *flags: str):
    """Runs the program; returns its exit code."""
    command = ["tools.export", "--run", str(run), "--to", str(target), *flags]
    monkeypatch.setattr(sys, "argv", command)
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
    expected = named_leaves(params)
    for path, leaf in named_leaves(hf_folder.load_params(target)).items():
        np.testing.assert_array_equal(leaf, expected[path], err_msg=path)
    model = Path(json.loads((out / "config.json").read_text())["model"])
    for name in ("config.json", "tokenizer_config.json", "tokenizer.model"):
        assert (target / name).read_bytes() == (model / name).read_bytes()


def test_adapters_are_merged_unless_they_are_asked_for(lora_run, tmp_path, monkeypatch):
    out, params = lora_run
    assert call(monkeypatch, out, tmp_path / "merged") == 0
    expected = named_leaves(params)
    for path, leaf in named_leaves(hf_folder.load_params(tmp_path / "merged")).items():
        np.testing.assert_allclose(
            leaf, expected[path], rtol=0, atol=1e-6, err_msg=path
        )


def test_an_adapter_folder_is_what_peft_calls_one(lora_run, tmp_path, monkeypatch):
    """PEFT itself reads it in tests/parity."""
    out, params = lora_run
    assert call(monkeypatch, out, tmp_path / "adapter", "--adapter") == 0
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    peft_config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    model = Path(json.loads((out / "config.json").read_text())["model"])
    assert peft_config["r"] == 2
    assert peft_config["lora_alpha"] == 3.0
    assert peft_config["base_model_name_or_path"] == str(model)
    assert peft_config["target_modules"] == ["down_proj", "q_proj"]
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(tensors) == 2 * 2 * 2  # A and B of two matrices in two layers
    for place, module in (
        ("attention/query", "self_attn.q_proj"),
        ("mlp/down", "mlp.down_proj"),
    ):
        path = f"layers_1/{place}/kernel"
        prefix = f"base_model.model.model.layers.1.{module}"
        a = tensors[f"{prefix}.lora_A.weight"]
        b = tensors[f"{prefix}.lora_B.weight"]
        change = (
            named_leaves(params)[path]
            - named_leaves(hf_folder.load_params(model))[path]
        )
        np.testing.assert_allclose(1.5 * (b @ a).T, change, rtol=0, atol=1e-6)


def copied(out, folder, **changes):
    """Copies a run's config.json, changed, without its checkpoints."""
    folder.mkdir()
    config = json.loads((out / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def missing_run(out, here):
    return here


def run_without_checkpoint(out, here):
    return copied(out, here / "run")


def finished_run(out, here):
    return out


def run_of_missing_model(out, here):
    return copied(out, here / "run", model="/nowhere")


@pytest.mark.parametrize(
    ("make_source", "target", "message"),
    [
        (missing_run, "new", "holds no run (no config.json): give the --config.out"),
        (run_without_checkpoint, "new", "there is no checkpoint"),
        (finished_run, "", "is there already: name a folder that is not"),
        (run_of_missing_model, "new", "/nowhere is not there"),
    ],
    ids=["no run", "no checkpoint", "target exists", "no model"],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(
    run, tmp_path, monkeypatch, capsys, make_source, target, message
):
    source = make_source(run[0], tmp_path)
    target = tmp_path / target
    before = set(tmp_path.rglob("*"))
    assert call(monkeypatch, source, target) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert set(tmp_path.rglob("*")) == before


def test_where_everything_is_trained_there_is_no_adapter(
    run, tmp_path, monkeypatch, capsys
):
    assert call(monkeypatch, run[0], tmp_path / "new", "--adapter") == 2
    assert "lora.rank is 0" in capsys.readouterr().err


def test_adapters_are_in_float32_alone(lora_run, tmp_path, monkeypatch, capsys):
    flags = ("--adapter", "--dtype", "bfloat16")
    assert call(monkeypatch, lora_run[0], tmp_path / "new", *flags) == 2
    assert "which --dtype bfloat16 is not" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    for number, one_of_them in enumerate((flags[:1], flags[1:])):
        assert (
            call(monkeypatch, lora_run[0], tmp_path / f"new {number}", *one_of_them)
            == 0
        )


def test_a_damaged_config_is_one_line_too(run, tmp_path, monkeypatch, capsys):
    for text in ("{", "[]", "{}"):
        (tmp_path / "config.json").write_text(text)
        assert call(monkeypatch, tmp_path, tmp_path / "new") == 2
        assert "config.json" in capsys.readouterr().err
