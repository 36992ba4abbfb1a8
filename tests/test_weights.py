"""A Hugging Face folder, read and written again, is the same model; whatever is wrong with one is named."""

import json
import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from jaxgrpo.errors import UserError
from jaxgrpo.mesh import named_leaves
from jaxgrpo.models import transformer, weights
from tests.tiny_models import make_folder

QUERY = "model.layers.1.self_attn.q_proj.weight"
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def folder(original, tmp_path):
    """A copy, to be spoiled."""
    return Path(shutil.copytree(original, tmp_path / "model"))


def change_config(folder, **values):
    """Sets fields of config.json; `...` removes one."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | values
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))


def change_tensors(folder, **tensors):
    """Adds or replaces tensors; `...` removes one."""
    path = folder / "model.safetensors"
    changed = load_file(path) | tensors
    save_file({name: value for name, value in changed.items() if value is not ...}, path)


def bits(tree):
    return {name: (leaf.shape, np.asarray(leaf).tobytes()) for name, leaf in named_leaves(tree).items()}


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("LlamaForCausalLM", {}),
        ("LlamaForCausalLM", {"tie_word_embeddings": False, "num_attention_heads": 3, "num_key_value_heads": 1}),
        ("Qwen2ForCausalLM", {}),
    ],
)
def test_what_is_saved_is_what_was_loaded(tmp_path, architecture, changes):
    source = make_folder(tmp_path / "source", architecture, **changes)
    params = weights.load_params(source)
    weights.save(params, source, tmp_path / "deep" / "target")
    assert bits(weights.load_params(tmp_path / "deep" / "target")) == bits(params)
    assert weights.load_config(tmp_path / "deep" / "target") == weights.load_config(source)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["target"]
    written = {path.name: path.stat().st_mode for path in (tmp_path / "deep" / "target").iterdir()}
    assert written.keys() == {path.name for path in source.iterdir()}
    assert written["model.safetensors"] == written["config.json"]


def test_the_tree_is_the_networks(original):
    config = weights.check_folder(original)
    params = weights.load_params(original)
    like = transformer.shapes(config)
    assert jax.tree.structure(params) == jax.tree.structure(like)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(lambda x: (x.shape, x.dtype), like)


def test_kernels_are_turned_and_biases_are_not(tmp_path):
    source = make_folder(tmp_path / "qwen", "Qwen2ForCausalLM")
    attention = weights.load_params(source)["layers_1"]["attention"]["query"]
    tensors = load_file(source / "model.safetensors")
    np.testing.assert_array_equal(attention["kernel"], tensors[QUERY].T)
    np.testing.assert_array_equal(attention["bias"], tensors[QUERY.replace("weight", "bias")])


def test_each_tensor_is_placed_as_it_is_read(original):
    placed = {}
    params = weights.load_params(original, lambda path, array: placed.setdefault(path, array).shape)
    assert placed.keys() == named_leaves(transformer.shapes(weights.load_config(original))).keys()
    assert params["embedding"] == placed["embedding"].shape


def test_shards_with_an_index_are_one_model(folder, original):
    """Names are spread over the files without regard to layers."""
    whole = folder / "model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    index = {}
    for shard in (0, 1):
        file = f"model-0000{shard + 1}-of-00002.safetensors"
        names = sorted(tensors)[shard::2]
        save_file({name: tensors[name] for name in names}, folder / file)
        index |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    assert bits(weights.load_params(folder)) == bits(weights.load_params(original))
    target = folder.with_name("target")
    weights.save(weights.load_params(folder), folder, target)
    assert not (target / "model.safetensors.index.json").exists()
    assert bits(weights.load_params(target)) == bits(weights.load_params(original))


@pytest.mark.parametrize(
    ("spelling", "name", "dtype"),
    [("dtype", "bfloat16", BFLOAT16), ("torch_dtype", "bfloat16", BFLOAT16), ("dtype", "float16", np.dtype("float16"))],
)
def test_half_width_folders_are_float32_here_and_stay_half_width_there(folder, spelling, name, dtype):
    narrow = {name: array.astype(dtype) for name, array in load_file(folder / "model.safetensors").items()}
    save_file(narrow, folder / "model.safetensors")
    change_config(folder, **({"dtype": ...} | {spelling: name}))
    params = weights.load_params(folder)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
    np.testing.assert_array_equal(params["layers_1"]["attention"]["query"]["kernel"], narrow[QUERY].T.astype(np.float32))
    target = folder.with_name("target")
    weights.save(params, folder, target)
    assert bits(load_file(target / "model.safetensors")) == bits(narrow)
    with safe_open(target / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}  # transformers asks for it


def test_a_tied_folder_may_repeat_its_embedding_and_older_ones_hold_frequencies(folder, original):
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    extra = {"lm_head.weight": embedding, "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32)}
    change_tensors(folder, **extra)
    assert bits(weights.load_params(folder)) == bits(weights.load_params(original))


def test_save_refuses_a_target_that_is_there(folder, original):
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(UserError, match=r"model is there already"):
        weights.save(weights.load_params(original), original, folder)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_save_that_fails_leaves_nothing(original, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("No space left on device")

    params = weights.load_params(original)
    monkeypatch.setattr(weights, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        weights.save(params, original, tmp_path / "target")
    assert list(tmp_path.iterdir()) == []


def test_a_save_that_was_killed_does_not_hinder_the_next(original, tmp_path):
    (tmp_path / "target.partial").mkdir()
    (tmp_path / "target.partial" / "stray.safetensors").write_text("half")
    weights.save(weights.load_params(original), original, tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert not (tmp_path / "target" / "stray.safetensors").exists()


SPOILED = {
    "no folder": (shutil.rmtree, "model is not there: give a Hugging Face folder"),
    "no config": (lambda f: (f / "config.json").unlink(), "model has no config.json"),
    "config not JSON": (lambda f: (f / "config.json").write_text("{'a': 1}"), "config.json is not JSON"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "config.json holds a list"),
    "unknown architecture": (
        lambda f: change_config(f, architectures=["GPT2LMHeadModel"]),
        "config.json says architecture GPT2LMHeadModel; those known here are LlamaForCausalLM, Qwen2ForCausalLM",
    ),
    "no architecture": (lambda f: change_config(f, architectures=...), "says architecture no architecture"),
    "lacking field": (lambda f: change_config(f, hidden_size=...), "config.json lacks 'hidden_size'"),
    "activation": (lambda f: change_config(f, hidden_act="gelu"), "config.json: hidden_act is 'gelu'"),
    "biases": (lambda f: change_config(f, attention_bias=True), "config.json: attention_bias"),
    "rope, old spelling": (
        lambda f: change_config(f, rope_scaling={"type": "linear", "factor": 2.0}),
        "config.json: rope type 'linear'",
    ),
    "rope, new spelling": (
        lambda f: change_config(f, rope_parameters={"rope_type": "llama3", "factor": 8.0}),
        "config.json: rope type 'llama3'",
    ),
    "odd heads": (
        lambda f: change_config(f, num_attention_heads=4, num_key_value_heads=3),
        "config.json: 4 query heads cannot share 3 key-value heads",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no *.safetensors"),
    "unreadable": (lambda f: (f / "model.safetensors").write_bytes(b"<html>"), "model.safetensors cannot be read"),
    "cut short": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-10]),
        "model.safetensors cannot be read",
    ),
    "missing tensor": (lambda f: change_tensors(f, **{QUERY: ...}), f"lacks 1 of 20 tensors, first {QUERY}"),
    "wrong shape": (
        lambda f: change_tensors(f, **{QUERY: np.zeros((16, 8), np.float32)}),
        f"{QUERY} is (16, 8), but config.json makes it (16, 16)",
    ),
    "extra tensor": (
        lambda f: change_tensors(f, **{"model.layers.1.self_attn.q_norm.weight": np.zeros(4, np.float32)}),
        "has 1 tensors that config.json does not explain, first model.layers.1.self_attn.q_norm.weight",
    ),
    "untied head": (
        lambda f: change_config(f, tie_word_embeddings=False),
        "lacks 1 of 21 tensors, first lm_head.weight",
    ),
}


@pytest.mark.parametrize("load", [weights.load_params, weights.check_folder], ids=["load", "check"])
@pytest.mark.parametrize(("spoil", "message"), SPOILED.values(), ids=SPOILED)
def test_what_is_wrong_is_named_in_one_line(folder, spoil, message, load):
    spoil(folder)
    with pytest.raises(UserError) as caught:
        load(folder)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_qwen2_sliding_windows_are_refused(folder):
    change_config(folder, architectures=["Qwen2ForCausalLM"], use_sliding_window=True)
    with pytest.raises(UserError, match=r"config.json: use_sliding_window is true"):
        weights.load_config(folder)


def test_both_spellings_of_the_rotary_base(folder):
    for changes in ({"rope_theta": 5e5}, {"rope_theta": ..., "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}):
        change_config(folder, **changes)
        assert weights.load_config(folder).rope.theta == 5e5
    change_config(folder, rope_parameters=...)
    assert weights.load_config(folder).rope.theta == 10_000.0
