"""Hugging Face folders <-> parameters: config.json, safetensors (single or sharded with an index), nothing executed."""

import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxgrpo.errors import UserError
from jaxgrpo.mesh import named_leaves
from jaxgrpo.models import gemma2, gemma3, llama, mistral, olmo2, qwen2, qwen3, transformer
from jaxgrpo.models.transformer import ModelConfig
from jaxgrpo.types import Params

FAMILIES = {
    "LlamaForCausalLM": llama,
    "Qwen2ForCausalLM": qwen2,
    "Qwen3ForCausalLM": qwen3,
    "Olmo2ForCausalLM": olmo2,
    "Gemma2ForCausalLM": gemma2,
    "Gemma3ForCausalLM": gemma3,
    "MistralForCausalLM": mistral,
}
"""What config.json calls an architecture -> the file that knows it."""

EMBEDDED = Path(__file__).parent.parent / "tiny"
"""The model that comes with the package; a config's `model = ""` means it."""


def read_hf_config(folder: Path) -> dict[str, Any]:
    """config.json as it stands. UserError if there is none, or it is not JSON, or of no family known here."""
    path = folder / "config.json"
    if not path.is_file():
        why = "has no config.json" if folder.is_dir() else "is not there"
        raise UserError(f"model folder {folder} {why}: give a Hugging Face folder (config.json, *.safetensors, tokenizer)")
    try:
        hf = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): copy it anew") from error
    if not isinstance(hf, dict):
        raise UserError(f"{path} holds a {type(hf).__name__}, not an object: copy it anew")
    names = hf.get("architectures") or ["no architecture"]
    if names[0] not in FAMILIES:
        raise UserError(f"{path} says architecture {names[0]}; those known here are {', '.join(FAMILIES)}")
    return hf


def load_config(folder: Path) -> ModelConfig:
    """The network a Hugging Face folder describes. UserError names the file and the field that is missing or not computed."""
    hf = read_hf_config(folder)
    try:
        return FAMILIES[hf["architectures"][0]].config_from_hf(hf)
    except KeyError as error:
        raise UserError(f"{folder / 'config.json'} lacks {error}: copy it anew") from error
    except UserError as error:
        raise UserError(f"{folder / 'config.json'}: {error}") from error


def check_folder(folder: Path) -> ModelConfig:
    """The network that a folder describes and holds, without reading a tensor. UserError as load_config and load_params."""
    config = load_config(folder)
    with ExitStack() as stack:
        _check_tensors(folder, config, _open_tensors(folder, stack), wanted_tensors(folder, config))
    return config


def load_params(folder: Path, place: Callable[[str, np.ndarray], Any] = lambda _, array: array) -> Params:
    """The parameters of a folder, in float32, one tensor at a time; `place(path, array)` puts each where it belongs.

    Raises UserError naming the tensors that are missing, of another shape than config.json says, or unknown.
    """
    config = load_config(folder)
    with ExitStack() as stack:
        tensors, wanted = _open_tensors(folder, stack), wanted_tensors(folder, config)
        _check_tensors(folder, config, tensors, wanted)
        params: Params = {}
        for name, (path, _) in wanted.items():
            array = np.asarray(tensors[name].get_tensor(name), dtype=np.float32)
            _insert(params, path, place(path, array.T if path.endswith("kernel") else array))
    return params


def save(params: Params, source: Path, target: Path) -> None:
    """Writes a Hugging Face folder: `source`'s config and tokenizer files, and these parameters in its dtype.

    The folder appears whole or not at all. Raises UserError if `target` is there already.
    """
    if target.exists():
        raise UserError(f"{target} is there already: name a folder that is not")
    partial_target = target.with_name(target.name + ".partial")
    shutil.rmtree(partial_target, ignore_errors=True)
    partial_target.mkdir(parents=True)
    try:
        _write(params, source, partial_target)
        partial_target.rename(target)
    finally:
        shutil.rmtree(partial_target, ignore_errors=True)


def _write(params: Params, source: Path, target: Path) -> None:
    hf, weights = read_hf_config(source), _weights_of(source)
    dtype = jax.numpy.dtype(hf.get("dtype") or hf.get("torch_dtype") or "float32")
    for file in source.iterdir():
        if file.suffix in (".json", ".model", ".jinja", ".txt") and not file.name.endswith(".safetensors.index.json"):
            shutil.copy(file, target)
    tensors = {}
    for path, leaf in named_leaves(params).items():
        array = np.asarray(leaf)
        tensors[_name(weights, path)] = np.ascontiguousarray(array.T if path.endswith("kernel") else array).astype(dtype)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    shutil.copymode(target / "config.json", target / "model.safetensors")  # safetensors lets nobody but the owner read it


def _weights_of(folder: Path) -> dict[str, str]:
    return FAMILIES[read_hf_config(folder)["architectures"][0]].WEIGHTS


def wanted_tensors(folder: Path, config: ModelConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Each tensor's name in the checkpoint -> our path and shape."""
    weights = _weights_of(folder)
    return {_name(weights, path): (path, leaf.shape) for path, leaf in named_leaves(transformer.shapes(config)).items()}


def _name(weights: dict[str, str], path: str) -> str:
    """layers_3/mlp/up/kernel -> model.layers.3.mlp.up_proj.weight"""
    head, _, rest = path.partition("/")
    stem, _, index = head.partition("_")
    if stem == "layers":
        return weights[f"layers_{{i}}/{rest}"].format(i=index)
    return weights[path]


def _insert(tree: dict, path: str, leaf: Any) -> None:
    *parents, last = path.split("/")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[last] = leaf


def _open_tensors(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Every tensor's name -> the open file that holds it."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"model folder {folder} has no *.safetensors: only that format is read; convert the weights to it")
    tensors: dict[str, Any] = {}
    for file in files:
        try:
            opened = stack.enter_context(safe_open(file, "np"))
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} cannot be read ({error}): copy it anew") from error
        tensors |= dict.fromkeys(opened.keys(), opened)
    return tensors


def _check_tensors(folder: Path, config: ModelConfig, tensors: dict, wanted: dict[str, tuple[str, tuple]]) -> None:
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise UserError(f"{folder} lacks {len(missing)} of {len(wanted)} tensors, first {missing[0]}: copy it anew")
    for name, (path, shape) in wanted.items():
        expected = shape[::-1] if path.endswith("kernel") else shape
        found = tuple(tensors[name].get_slice(name).get_shape())
        if found != expected:
            raise UserError(f"{folder}: {name} is {found}, but config.json makes it {expected}; one is another model's")
    tied = {"lm_head.weight"} if config.tied_embeddings else set()
    extra = [name for name in tensors if name not in wanted and name not in tied and not name.endswith("rotary_emb.inv_freq")]
    if extra:
        raise UserError(f"{folder} has {len(extra)} tensors that config.json does not explain, first {extra[0]}")
