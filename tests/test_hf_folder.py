"""A Hugging Face folder, read and written again, is the same model; errors name what is wrong."""

import copy
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import transformers
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from jaxgrpo.distributed.mesh import make_mesh, named_leaves, sharded_shapes
from jaxgrpo.errors import UserError
from jaxgrpo.models import hf_folder, rope, tensors, transformer
from tests.tiny_models import make_folder

QUERY = "model.layers.1.self_attn.q_proj.weight"
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def folder(original, tmp_path):
    """Returns a copy, to be spoiled."""
    return Path(shutil.copytree(original, tmp_path / "model"))


def change_config(folder, **values):
    """Sets fields of config.json; `...` removes one."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | values
    path.write_text(
        json.dumps({name: value for name, value in config.items() if value is not ...})
    )


def change_tensors(folder, **changes):
    """Adds or replaces tensors; `...` removes one."""
    path = folder / "model.safetensors"
    changed = load_file(path) | changes
    save_file(
        {name: value for name, value in changed.items() if value is not ...}, path
    )


def bits(tree):
    """Returns each leaf's shape and bytes, by its path."""
    leaves = named_leaves(tree)
    return {
        name: (leaf.shape, np.asarray(leaf).tobytes()) for name, leaf in leaves.items()
    }


def with_dtype(like, dtype):
    """Returns shapes with the same shardings in another dtype."""

    def convert(leaf):
        return jax.ShapeDtypeStruct(
            leaf.shape, jnp.dtype(dtype), sharding=leaf.sharding
        )

    return jax.tree.map(convert, like)


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("LlamaForCausalLM", {}),
        (
            "LlamaForCausalLM",
            {
                "tie_word_embeddings": False,
                "num_attention_heads": 3,
                "num_key_value_heads": 1,
            },
        ),
        ("Qwen2ForCausalLM", {}),
    ],
)
def test_what_is_saved_is_what_was_loaded(tmp_path, architecture, changes):
    source = make_folder(tmp_path / "source", architecture, **changes)
    params = hf_folder.load_params(source)
    hf_folder.save(params, source, tmp_path / "deep" / "target")
    assert bits(hf_folder.load_params(tmp_path / "deep" / "target")) == bits(params)
    assert hf_folder.load_config(tmp_path / "deep" / "target") == hf_folder.load_config(
        source
    )
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["target"]
    written = {
        path.name: path.stat().st_mode
        for path in (tmp_path / "deep" / "target").iterdir()
    }
    assert written.keys() == {path.name for path in source.iterdir()}
    assert written["model.safetensors"] == written["config.json"]


def test_the_tree_is_the_networks(original):
    config = hf_folder.check_folder(original)
    params = hf_folder.load_params(original)
    like = transformer.shapes(config)
    assert jax.tree.structure(params) == jax.tree.structure(like)
    for path, leaf in named_leaves(params).items():
        expected = named_leaves(like)[path]
        assert (leaf.shape, leaf.dtype) == (expected.shape, expected.dtype), path


def test_kernels_are_transposed_and_biases_are_not(tmp_path):
    source = make_folder(tmp_path / "qwen", "Qwen2ForCausalLM")
    query = hf_folder.load_params(source)["layers_1"]["attention"]["query"]
    stored = load_file(source / "model.safetensors")
    np.testing.assert_array_equal(query["kernel"], stored[QUERY].T)
    np.testing.assert_array_equal(
        query["bias"], stored[QUERY.replace("weight", "bias")]
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_tensor_is_read_to_where_it_belongs(original, dtype):
    mesh = make_mesh(devices=jax.devices()[:1])
    like = sharded_shapes(mesh, transformer.shapes(hf_folder.load_config(original)))
    like = with_dtype(like, dtype)
    params = hf_folder.load_params(original, like)
    assert jax.tree.structure(params) == jax.tree.structure(like)
    for path, leaf in named_leaves(params).items():
        expected = named_leaves(like)[path]
        assert (leaf.dtype, leaf.sharding) == (expected.dtype, expected.sharding), path
    on_host = hf_folder.load_params(original)
    assert bits(params) == bits(jax.tree.map(lambda leaf: leaf.astype(dtype), on_host))


def test_any_part_of_a_tensor_can_be_read(tmp_path, monkeypatch):
    """It is read in blocks of one or two rows, with some of the columns, transposed or not."""
    monkeypatch.setattr(tensors, "BLOCK_BYTES", 64)
    matrix = np.random.default_rng(0).normal(size=(11, 7)).astype(np.float32)
    save_file(
        {"other": np.ones(5, np.float32), "matrix": matrix, "one": matrix[0]},
        tmp_path / "model.safetensors",
    )
    stored = tensors.find_tensors(tmp_path)
    for rows, columns in [
        (slice(None), slice(None)),
        (slice(3, 9), slice(None)),
        (slice(0, 5), slice(2, 7)),
    ]:
        part = stored["matrix"].read((rows, columns), np.float32)
        np.testing.assert_array_equal(part, matrix[rows, columns])
        transposed = stored["matrix"].read((columns, rows), np.float16, transposed=True)
        np.testing.assert_array_equal(
            transposed, matrix.T[columns, rows].astype(np.float16)
        )
        assert part.flags.c_contiguous
        assert transposed.flags.c_contiguous
    np.testing.assert_array_equal(
        stored["one"].read((slice(2, 4),), np.float32), matrix[0, 2:4]
    )


def test_a_large_model_is_saved_in_several_files(original, tmp_path):
    params = hf_folder.load_params(original)
    hf_folder.save(params, original, tmp_path / "target", max_file_bytes=4000)
    files = sorted(path.name for path in (tmp_path / "target").glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((tmp_path / "target" / tensors.INDEX).read_text())
    file_of_tensor = {}
    total_bytes = 0
    for file in files:
        held = load_file(tmp_path / "target" / file)
        file_of_tensor |= dict.fromkeys(held, file)
        file_bytes = sum(tensor.nbytes for tensor in held.values())
        total_bytes += file_bytes
        # Only a tensor that is larger by itself makes a larger file.
        assert len(held) == 1 or file_bytes <= 4000
    assert index["weight_map"] == file_of_tensor
    assert index["metadata"]["total_size"] == total_bytes
    assert bits(hf_folder.load_params(tmp_path / "target")) == bits(params)


def test_tensors_are_taken_to_the_host_one_by_one(original, tmp_path, monkeypatch):
    """Each is written before the next is fetched."""
    events = []
    real_fetch = hf_folder._fetch
    real_contiguous = np.ascontiguousarray

    def fetch(*arguments):
        events.append("host")
        return real_fetch(*arguments)

    def contiguous(*arguments, **settings):
        events.append("write")
        return real_contiguous(*arguments, **settings)

    monkeypatch.setattr(hf_folder, "_fetch", fetch)
    monkeypatch.setattr(np, "ascontiguousarray", contiguous)
    params = hf_folder.load_params(original)
    hf_folder.save(params, original, tmp_path / "target")
    assert events == ["host", "write"] * len(jax.tree.leaves(params))


def test_shards_with_an_index_are_one_model(folder, original):
    """Names are divided among the files without regard to layers."""
    single_file = folder / "model.safetensors"
    stored = load_file(single_file)
    single_file.unlink()
    index = {}
    for shard in (0, 1):
        file = f"model-0000{shard + 1}-of-00002.safetensors"
        names = sorted(stored)[shard::2]
        save_file({name: stored[name] for name in names}, folder / file)
        index |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )
    stray = {
        QUERY: np.zeros((3, 3), np.float32),
        "consolidated": np.zeros(2, np.float32),
    }
    save_file(stray, folder / "consolidated.safetensors")  # the index does not name it
    assert bits(hf_folder.load_params(folder)) == bits(hf_folder.load_params(original))
    target = folder.with_name("target")
    hf_folder.save(hf_folder.load_params(folder), folder, target)
    assert not (target / "model.safetensors.index.json").exists()
    assert bits(hf_folder.load_params(target)) == bits(hf_folder.load_params(original))


@pytest.mark.parametrize(
    ("spelling", "name", "dtype"),
    [
        ("dtype", "bfloat16", BFLOAT16),
        ("torch_dtype", "bfloat16", BFLOAT16),
        ("dtype", "float16", np.dtype("float16")),
    ],
)
def test_half_width_folders_are_float32_here_and_stay_half_width_there(
    folder, spelling, name, dtype
):
    narrow = {
        name: array.astype(dtype)
        for name, array in load_file(folder / "model.safetensors").items()
    }
    save_file(narrow, folder / "model.safetensors")
    change_config(folder, **({"dtype": ...} | {spelling: name}))
    params = hf_folder.load_params(folder)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
    np.testing.assert_array_equal(
        params["layers_1"]["attention"]["query"]["kernel"],
        narrow[QUERY].T.astype(np.float32),
    )
    target = folder.with_name("target")
    hf_folder.save(params, folder, target)
    assert bits(load_file(target / "model.safetensors")) == bits(narrow)
    with safe_open(target / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}  # transformers asks for it


def test_a_tied_folder_may_repeat_its_embedding_and_older_ones_hold_frequencies(
    folder, original
):
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    extra = {
        "lm_head.weight": embedding,
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32),
    }
    change_tensors(folder, **extra)
    assert bits(hf_folder.load_params(folder)) == bits(hf_folder.load_params(original))


def test_save_refuses_a_target_that_is_there(folder, original):
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(UserError, match=r"model is there already"):
        hf_folder.save(hf_folder.load_params(original), original, folder)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_save_that_fails_leaves_nothing(original, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("No space left on device")

    params = hf_folder.load_params(original)
    monkeypatch.setattr(tensors, "write_file", full)
    with pytest.raises(OSError, match="No space left"):
        hf_folder.save(params, original, tmp_path / "target")
    assert list(tmp_path.iterdir()) == []


def test_a_save_that_was_killed_does_not_hinder_the_next(original, tmp_path):
    (tmp_path / "target.partial").mkdir()
    (tmp_path / "target.partial" / "stray.safetensors").write_text("half")
    hf_folder.save(hf_folder.load_params(original), original, tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert not (tmp_path / "target" / "stray.safetensors").exists()


SPOILED = {
    "no folder": (shutil.rmtree, "model is not there: give a Hugging Face folder"),
    "no config": (lambda f: (f / "config.json").unlink(), "model has no config.json"),
    "config not JSON": (
        lambda f: (f / "config.json").write_text("{'a': 1}"),
        "config.json is not JSON",
    ),
    "config a list": (
        lambda f: (f / "config.json").write_text("[]"),
        "config.json holds a list",
    ),
    "unknown architecture": (
        lambda f: change_config(f, architectures=["GPT2LMHeadModel"]),
        "config.json says architecture GPT2LMHeadModel; "
        "those known here are LlamaForCausalLM, Qwen2ForCausalLM, ",
    ),
    "no architecture": (
        lambda f: change_config(f, architectures=...),
        "says architecture no architecture",
    ),
    "lacking field": (
        lambda f: change_config(f, hidden_size=...),
        "config.json lacks 'hidden_size'",
    ),
    "activation": (
        lambda f: change_config(f, hidden_act="gelu"),
        "config.json: hidden_act is 'gelu'",
    ),
    "biases": (
        lambda f: change_config(f, attention_bias=True),
        "lacks 8 of 28 tensors, first model.layers.0.self_attn.k_proj",
    ),
    "biases of the MLP": (
        lambda f: change_config(f, mlp_bias=True),
        "config.json: mlp_bias is True; computed here: no bias",
    ),
    "rope, old spelling": (
        lambda f: change_config(f, rope_scaling={"type": "dynamic", "factor": 2.0}),
        "config.json: rope type 'dynamic' is not computed here; "
        "default, linear, llama3 and yarn are",
    ),
    "rope, new spelling": (
        lambda f: change_config(
            f, rope_parameters={"rope_type": "longrope", "factor": 8.0}
        ),
        "config.json: rope type 'longrope'",
    ),
    "rope, lacking a factor": (
        lambda f: change_config(
            f, rope_parameters={"rope_type": "llama3", "factor": 8.0}
        ),
        "config.json lacks 'low_freq_factor'",
    ),
    "part of a head turned": (
        lambda f: change_config(f, partial_rotary_factor=0.5),
        "config.json: partial_rotary_factor is 0.5; whole heads",
    ),
    "quantised": (
        lambda f: change_config(f, quantization_config={"quant_method": "fp8"}),
        "config.json: quantization_config is {'quant_method': 'fp8'}; "
        "computed here: float32, bfloat16 and float16",
    ),
    "integers": (
        lambda f: change_tensors(f, **{QUERY: np.ones((16, 16), np.int8)}),
        f"{QUERY} is quantised or of integers",
    ),
    "a file of the index": (
        lambda f: (f / "model.safetensors.index.json").write_text(
            '{"weight_map": {"a": "model-00001-of-00001.safetensors"}}'
        ),
        "lacks 1 of the 1 files its index names, first model-00001-of-00001.safetensors",
    ),
    "no index": (
        lambda f: (f / "model.safetensors.index.json").write_text("[]"),
        "index.json is no index (TypeError",
    ),
    "odd heads": (
        lambda f: change_config(f, num_attention_heads=4, num_key_value_heads=3),
        "config.json: 4 query heads cannot share 3 key-value heads",
    ),
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        "has no *.safetensors",
    ),
    "unreadable": (
        lambda f: (f / "model.safetensors").write_bytes(b"<html>"),
        "model.safetensors cannot be read",
    ),
    "cut short": (
        lambda f: (f / "model.safetensors").write_bytes(
            (f / "model.safetensors").read_bytes()[:-10]
        ),
        "model.safetensors cannot be read",
    ),
    "missing tensor": (
        lambda f: change_tensors(f, **{QUERY: ...}),
        f"lacks 1 of 20 tensors, first {QUERY}",
    ),
    "wrong shape": (
        lambda f: change_tensors(f, **{QUERY: np.zeros((16, 8), np.float32)}),
        f"{QUERY} is (16, 8), but config.json makes it (16, 16)",
    ),
    "extra tensor": (
        lambda f: change_tensors(
            f, **{"model.layers.1.self_attn.q_norm.weight": np.zeros(4, np.float32)}
        ),
        "has 1 tensors that config.json does not explain, "
        "first model.layers.1.self_attn.q_norm.weight",
    ),
    "untied head": (
        lambda f: change_config(f, tie_word_embeddings=False),
        "lacks 1 of 21 tensors, first lm_head.weight",
    ),
}


@pytest.mark.parametrize(
    "load", [hf_folder.load_params, hf_folder.check_folder], ids=["load", "check"]
)
@pytest.mark.parametrize(("spoil", "message"), SPOILED.values(), ids=SPOILED)
def test_what_is_wrong_is_named_in_one_line(folder, spoil, message, load):
    spoil(folder)
    with pytest.raises(UserError) as caught:
        load(folder)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


REFUSED = {
    "qwen2, chunks": (
        "Qwen2ForCausalLM",
        {"layer_types": ["chunked_attention"] * 2},
        "layer_types holds 'chunked_attention'",
    ),
    "qwen2, short": (
        "Qwen2ForCausalLM",
        {"layer_types": ["full_attention"]},
        "layer_types has 1 of 2 layers; computed here",
    ),
    "qwen2, two": (
        "Qwen2ForCausalLM",
        {"rope_parameters": {"full_attention": {}}},
        "rope_parameters has 'full_attention'",
    ),
    "mistral": (
        "MistralForCausalLM",
        {"layer_types": ["full_attention"] * 2},
        "layer_types is ['full_attention', 'full_",
    ),
    "gemma2": (
        "Gemma2ForCausalLM",
        {"hidden_activation": "gelu"},
        "hidden_activation is 'gelu'; computed here: gelu's",
    ),
    "gemma3, both ways": (
        "Gemma3ForCausalLM",
        {"use_bidirectional_attention": True},
        "use_bidirectional_attention is True",
    ),
    "gemma3, cap": (
        "Gemma3ForCausalLM",
        {"attn_logit_softcapping": 50.0},
        "attn_logit_softcapping is 50.0; computed here",
    ),
    "yarn": (
        "LlamaForCausalLM",
        {"rope_scaling": {"type": "yarn", "factor": 4.0, "mscale": 1.0}},
        "mscale is 1.0; of yarn",
    ),
}


@pytest.mark.parametrize(
    ("architecture", "changes", "message"), REFUSED.values(), ids=REFUSED
)
def test_what_is_not_computed_is_refused(folder, architecture, changes, message):
    """The message names the field of config.json, its value, and what is computed."""
    change_config(folder, architectures=[architecture], **changes)
    with pytest.raises(UserError, match=re.escape(f"config.json: {message}")):
        hf_folder.load_config(folder)


def test_each_layers_window_is_the_familys(folder):
    """It decides where config.json has no layer_types, as before transformers 5."""

    def windows(architecture, **changes):
        change_config(
            folder,
            architectures=[f"{architecture}ForCausalLM"],
            num_hidden_layers=7,
            **changes,
        )
        return hf_folder.load_config(folder).windows

    assert windows("Llama") == ()
    assert windows("Qwen2", use_sliding_window=False, sliding_window=32) == ()
    assert windows("Qwen2", use_sliding_window=True, max_window_layers=5) == (
        0,
        0,
        0,
        0,
        0,
        32,
        32,
    )
    assert windows("Mistral") == (32,) * 7
    assert windows("Gemma2") == (32, 0, 32, 0, 32, 0, 32)
    assert windows("Gemma3") == (32, 32, 32, 32, 32, 0, 32)
    assert windows("Gemma3", sliding_window_pattern=3) == (32, 32, 0, 32, 32, 0, 32)
    assert windows("Mistral", sliding_window=None) == ()


def test_gemma3_has_a_rotary_base_for_each_kind_of_layer(folder):
    """Both spellings are read; a scaling applies to the layers without a window."""
    scaling = {"rope_type": "linear", "factor": 8.0}
    old_spelling = {
        "rope_theta": 1e6,
        "rope_local_base_freq": 500.0,
        "rope_scaling": scaling,
    }
    new_spelling = dict.fromkeys(old_spelling, ...) | {
        "rope_parameters": {
            "full_attention": scaling | {"rope_theta": 1e6},
            "sliding_attention": {"rope_theta": 500.0},
        }
    }
    for changes in (old_spelling, new_spelling):
        change_config(folder, architectures=["Gemma3ForCausalLM"], **changes)
        config = hf_folder.load_config(folder)
        assert config.rope == rope.Linear(1e6, 8.0)
        assert config.local_rope == rope.Rope(500.0)


def test_both_spellings_of_the_rotary_base(folder):
    for changes in (
        {"rope_theta": 5e5},
        {
            "rope_theta": ...,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
        },
    ):
        change_config(folder, **changes)
        assert hf_folder.load_config(folder).rope.theta == 5e5
    change_config(folder, rope_parameters=...)
    assert hf_folder.load_config(folder).rope.theta == 10_000.0


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LINEAR = {"rope_type": "linear", "factor": 8.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
THETA = {"rope_theta": 1e6}
NO_ROPE = {"rope_parameters": ..., "rope_theta": ...}
WAYS = {  # (fields of config.json, whether they are computed)
    "nothing": ({}, True),
    "a base": (THETA, True),
    "a scaling": (THETA | {"rope_scaling": YARN}, True),
    "a scaling, old spelling": (
        THETA | {"rope_scaling": {"type": "linear", "factor": 8.0}},
        True,
    ),
    "parameters": ({"rope_parameters": YARN | THETA}, True),
    "parameters beside a base": (
        {"rope_theta": 5.0, "rope_parameters": YARN | THETA},
        True,
    ),
    "both, base beside": (
        THETA
        | {"rope_parameters": THETA | {"rope_type": "default"}, "rope_scaling": YARN},
        True,
    ),
    "both, base in both": (
        {
            "rope_parameters": THETA | {"rope_type": "default"},
            "rope_scaling": YARN | THETA,
        },
        True,
    ),
    "both, no base": (
        {"rope_parameters": {"rope_type": "default"}, "rope_scaling": LLAMA3},
        True,
    ),
    "both scaled": (
        {"rope_parameters": LINEAR | THETA, "rope_scaling": YARN | THETA},
        True,
    ),
    "both, no scaling": (
        {
            "rope_parameters": LINEAR | THETA,
            "rope_scaling": {"rope_type": "default"} | THETA,
        },
        True,
    ),
    "both, empty": ({"rope_parameters": LINEAR | THETA, "rope_scaling": {}}, True),
    "both, base lost": (
        {"rope_parameters": THETA | {"rope_type": "default"}, "rope_scaling": YARN},
        False,
    ),
    "both, another base": (
        {"rope_parameters": THETA, "rope_scaling": YARN | {"rope_theta": 5e5}},
        False,
    ),
}


@pytest.mark.parametrize(
    "family", ["Llama", "Qwen2", "Qwen3", "Olmo2", "Gemma2", "Mistral"]
)
@pytest.mark.parametrize("way", WAYS)
def test_the_rotary_settings_are_read_as_transformers_does(folder, family, way):
    """They are refused where transformers would lose what config.json says."""
    fields, is_computed = WAYS[way]
    change_config(folder, architectures=[f"{family}ForCausalLM"], **NO_ROPE | fields)
    if not is_computed:
        with pytest.raises(
            UserError,
            match=r"rope_scaling stands beside rope_parameters .* so that rope_theta",
        ):
            hf_folder.load_config(folder)
        return
    theirs = getattr(transformers, f"{family}Config")(
        max_position_embeddings=2048, **copy.deepcopy(fields)
    ).rope_parameters
    assert hf_folder.load_config(folder).rope == rope.from_settings(
        {}, theirs, math.nan
    )


NESTED = {
    "full_attention": {"rope_type": "default"} | THETA,
    "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
}
GEMMA3 = {  # (fields of config.json, the message that refuses them)
    "nothing": ({}, ""),
    "a scaling": ({"rope_scaling": LINEAR}, ""),
    "bases and a scaling": (
        THETA | {"rope_local_base_freq": 500.0, "rope_scaling": LINEAR},
        "",
    ),
    "parameters": ({"rope_parameters": NESTED}, ""),
    "one of them": ({"rope_parameters": {"full_attention": LINEAR | THETA}}, ""),
    "both": ({"rope_parameters": NESTED, "rope_scaling": LINEAR}, ""),
    "both, another base": (
        {"rope_parameters": NESTED, "rope_scaling": LINEAR | {"rope_theta": 5e5}},
        "",
    ),
    "both scaled": (
        {
            "rope_parameters": NESTED | {"full_attention": LINEAR | THETA},
            "rope_scaling": YARN,
        },
        "",
    ),
    "both, old spelling": (
        {"rope_parameters": NESTED, "rope_scaling": {"type": "linear", "factor": 8.0}},
        "rope_scaling has type 'linear'",
    ),
    "old spelling": (
        {"rope_scaling": {"type": "linear", "factor": 8.0}},
        "rope_scaling has type 'linear'",
    ),
    "not nested": (
        {"rope_parameters": LINEAR | THETA},
        "rope_parameters has 'factor' for all layers",
    ),
}


@pytest.mark.parametrize(("fields", "message"), GEMMA3.values(), ids=GEMMA3)
def test_gemma3s_rotary_settings_are_read_as_transformers_does(folder, fields, message):
    change_config(folder, architectures=["Gemma3ForCausalLM"], **NO_ROPE | fields)
    if message:
        with pytest.raises(UserError, match=re.escape(f"config.json: {message}")):
            hf_folder.load_config(folder)
        return
    theirs = transformers.Gemma3TextConfig(
        max_position_embeddings=2048, **copy.deepcopy(fields)
    ).rope_parameters
    config = hf_folder.load_config(folder)
    assert config.rope == rope.from_settings({}, theirs["full_attention"], math.nan)
    assert config.local_rope == rope.from_settings(
        {}, theirs["sliding_attention"], math.nan
    )


def test_checking_a_folder_opens_no_device():
    """A run checks its model before it decides how many devices a CPU is divided into."""
    code = (
        "from jax._src import xla_bridge\n"
        "from jaxgrpo.models import hf_folder\n"
        "hf_folder.check_folder(hf_folder.EMBEDDED)\n"
        "print(xla_bridge.backends_are_initialized())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "False\n", done.stderr
