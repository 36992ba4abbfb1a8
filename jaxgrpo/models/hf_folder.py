"""Hugging Face folders <-> parameters: config.json, safetensors (single or sharded with an index), nothing executed."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike

from jaxgrpo.distributed.mesh import named_leaves, to_host
from jaxgrpo.errors import UserError
from jaxgrpo.models import gemma2, gemma3, llama, mistral, olmo2, qwen2, qwen3, tensors, transformer
from jaxgrpo.models.lora import Lora
from jaxgrpo.models.model_config import ModelConfig
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

FILE_LIMIT = 5 * 10**9
"""Bytes of a file of weights, as transformers has it."""

EMBEDDED = Path(__file__).parent.parent / "tiny"
"""The model that comes with the package; a config's `model = ""` means it."""


def read_hf_config(folder: Path) -> dict[str, Any]:
    """config.json as it stands. UserError if there is none, or it is not JSON, or of no family known here."""
    path = folder / "config.json"
    if not path.is_file():
        why = "has no config.json" if folder.is_dir() else "is not there"
        raise UserError(
            f"model folder {folder} {why}: give a Hugging Face folder (config.json, *.safetensors, tokenizer)"
        )
    try:
        hf = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}): copy it anew") from error
    if not isinstance(hf, dict):
        raise UserError(f"{path} holds a {type(hf).__name__}, not an object: copy it anew")
    names = hf.get("architectures") or ["no architecture"]
    if names[0] not in FAMILIES:
        raise UserError(
            f"{path} says architecture {names[0]}; those known here are {', '.join(FAMILIES)}"
        )
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


def max_positions(folder: Path) -> int | None:
    """Returns how many tokens the model of a folder was made for, as scaled; None where
    config.json does not say."""
    positions = read_hf_config(folder).get("max_position_embeddings")
    network = load_config(folder)
    # Gemma 3 says the scaled number.
    return positions if not positions or network.local_rope else network.rope.stretched(positions)


def check_folder(folder: Path) -> ModelConfig:
    """The network that a folder describes and holds, without reading a tensor. UserError as load_config and load_params."""
    config = load_config(folder)
    _check_tensors(folder, config, tensors.found_in(folder), wanted_tensors(folder, config))
    return config


def load_params(folder: Path, like: Params | None = None) -> Params:
    """The parameters of a folder, one tensor at a time.

    like: a jax.ShapeDtypeStruct with a sharding for each of them, as steps.params_like. Each device's part is read straight
    from the file, in the dtype given there; besides the parts of this process no more than one of them is held. None: whole
    numpy arrays in float32.

    Raises UserError naming the tensors that are missing, of another shape than config.json says, or unknown.
    """
    config = load_config(folder)
    found, wanted = tensors.found_in(folder), wanted_tensors(folder, config)
    _check_tensors(folder, config, found, wanted)
    places = {} if like is None else named_leaves(like)
    params: Params = {}
    for name, (path, _) in wanted.items():
        place = places[path] if places else None
        turned = path.endswith("kernel")
        _insert(
            params,
            path,
            _placed(found[name], turned, place) if place else found[name].whole(np.float32, turned),
        )
    return params


def _placed(tensor: tensors.Tensor, turned: bool, place: jax.ShapeDtypeStruct) -> jax.Array:
    """The array of which every device of this process has its part."""
    shards: list[jax.Array] = []
    last, part = None, np.zeros(0)
    for device, index in place.sharding.addressable_devices_indices_map(place.shape).items():
        if index != last:  # neighbours may hold the same
            last, part = index, tensor.read(index, place.dtype, turned)
        # One at a time: what is still under way is held twice.
        shards.append(jax.block_until_ready(jax.device_put(part, device)))
    return jax.make_array_from_single_device_arrays(place.shape, place.sharding, shards)


def save(
    params: Params,
    source: Path,
    target: Path,
    limit: int = FILE_LIMIT,
    dtype: DTypeLike | None = None,
) -> None:
    """Writes a Hugging Face folder: `source`'s config and tokenizer files, and these parameters.

    The folder appears whole or not at all. Tensors come to the host one after another; of several processes, all of which must
    call this, the first one writes.

    limit: bytes of a file; more are several, with an index
    dtype: of all tensors, which config.json then says, too (None: each as it is in `source`)

    Raises UserError if `target` is there already.
    """
    planned = _planned(params, source, dtype)

    def write(folder: Path) -> None:
        for file in source.iterdir():
            if file.suffix in (".json", ".model", ".jinja", ".txt") and file.name != tensors.INDEX:
                shutil.copy(file, folder)
        if dtype is not None:
            _say_dtype(folder / "config.json", jax.numpy.dtype(dtype).name)
        tensors.write(folder, planned, limit)

    _appear(target, planned, write)


def _say_dtype(path: Path, dtype: str) -> None:
    """Has a config.json say a dtype; one that says so already stays as it is, byte for byte."""
    hf = json.loads(path.read_text())
    if (hf.get("dtype") or hf.get("torch_dtype") or "float32") != dtype:
        hf.pop("torch_dtype", None)
        path.write_text(json.dumps(hf | {"dtype": dtype}, indent=2) + "\n")


def save_adapters(adapters: Params, lora: Lora, source: Path, target: Path) -> None:
    """Writes a PEFT folder: adapters of the model in `source`, unstacked, in float32. Whole or not at all, and UserError, as
    `save`."""
    planned: dict[str, tensors.Planned] = {}
    modules = set()
    for path, leaf in named_leaves(adapters).items():
        place, _, name = path.rpartition("/")
        module = _name(_weights_of(source), f"{place}/kernel").removesuffix(".weight")
        modules.add(module.rpartition(".")[2])
        end = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight"}[name]
        host = partial(_to_host, leaf, True)
        planned[f"base_model.model.{module}.{end}"] = tensors.Planned(
            np.dtype(np.float32), leaf.shape[::-1], host
        )
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(source.resolve()),
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": sorted(modules),
        "bias": "none",
        "inference_mode": True,
    }

    def write(folder: Path) -> None:
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
        tensors.write_file(folder / "adapter_model.safetensors", planned)

    _appear(target, planned, write)


def _appear(
    target: Path, planned: dict[str, tensors.Planned], write: Callable[[Path], None]
) -> None:
    """A folder that is `target` once everything is in it; processes other than the first only help with what is planned."""
    if target.exists():
        raise UserError(f"{target} is there already: name a folder that is not")
    if jax.process_index():
        for tensor in planned.values():
            tensor.array()
        return
    partial_target = target.with_name(target.name + ".partial")
    shutil.rmtree(partial_target, ignore_errors=True)
    partial_target.mkdir(parents=True)
    try:
        write(partial_target)
        partial_target.rename(target)
    finally:
        shutil.rmtree(partial_target, ignore_errors=True)


def _planned(params: Params, source: Path, wanted: DTypeLike | None) -> dict[str, tensors.Planned]:
    """Each parameter under its checkpoint's name, in the dtype that is wanted, or that it has there, or that config.json says
    if it is not there."""
    hf, weights = read_hf_config(source), _weights_of(source)
    dtype = jax.numpy.dtype(hf.get("dtype") or hf.get("torch_dtype") or "float32")
    found = tensors.found_in(source) if any(source.glob("*.safetensors")) else {}
    planned = {}
    for path, leaf in named_leaves(params).items():
        name, turned = _name(weights, path), path.endswith("kernel")
        host = partial(_to_host, leaf, turned)
        own = found[name].dtype if name in found else dtype
        own = own if wanted is None else jax.numpy.dtype(wanted)
        planned[name] = tensors.Planned(own, leaf.shape[::-1] if turned else leaf.shape, host)
    return planned


def _to_host(leaf: Any, turned: bool) -> np.ndarray:
    array = np.asarray(to_host(leaf))
    return array.T if turned else array


def _weights_of(folder: Path) -> dict[str, str]:
    return FAMILIES[read_hf_config(folder)["architectures"][0]].WEIGHTS


def wanted_tensors(folder: Path, config: ModelConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Each tensor's name in the checkpoint -> our path and shape."""
    weights = _weights_of(folder)
    return {
        _name(weights, path): (path, leaf.shape)
        for path, leaf in named_leaves(transformer.shapes(config)).items()
    }


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


def _check_tensors(
    folder: Path,
    config: ModelConfig,
    found: dict[str, tensors.Tensor],
    wanted: dict[str, tuple[str, tuple]],
) -> None:
    missing = [name for name in wanted if name not in found]
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} of {len(wanted)} tensors, first {missing[0]}: copy it anew"
        )
    for name, (path, own) in wanted.items():
        expected, shape = own[::-1] if path.endswith("kernel") else own, found[name].shape
        if shape != expected:
            raise UserError(
                f"{folder}: {name} is {shape}, but config.json makes it {expected}; one is another model's"
            )
        if found[name].dtype.name not in tensors.DTYPES.values():
            raise UserError(
                f"{folder}: {name} is quantised or of integers; read are {', '.join(tensors.DTYPES)}"
            )
    tied = {"lm_head.weight"} if config.tied_embeddings else set()
    extra = [
        name
        for name in found
        if name not in wanted and name not in tied and not name.endswith("rotary_emb.inv_freq")
    ]
    if extra:
        raise UserError(
            f"{folder} has {len(extra)} tensors that config.json does not explain, first {extra[0]}"
        )
