"""Hugging Face folders to parameters and back: config.json and safetensors files.

Nothing in a folder is executed. A path such as layers_3/mlp/up/kernel is a parameter's place in
the tree here; a name such as model.layers.3.mlp.up_proj.weight is the checkpoint's.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.typing import DTypeLike

from jaxgrpo import hub
from jaxgrpo.distributed.mesh import named_leaves, to_host
from jaxgrpo.errors import UserError
from jaxgrpo.models import tensors, transformer
from jaxgrpo.models.families import FAMILIES, checkpoint_name, family_of, is_transposed
from jaxgrpo.models.hf_config import HfConfig
from jaxgrpo.models.lora import Lora
from jaxgrpo.models.model_config import ModelConfig
from jaxgrpo.models.tensors import PlannedTensor, Tensor
from jaxgrpo.types import Params

MAX_FILE_BYTES = 5 * 10**9
"""Default size of a file of weights, the same as in transformers."""

EMBEDDED = Path(__file__).parent.parent / "tiny"
"""The model that comes with the package; a config's `model = ""` means it."""

COPIED_SUFFIXES = (".json", ".model", ".jinja", ".txt")
"""Files of a folder besides its weights: configuration, tokenizer, chat template."""


# --- Reading ---


def read_hf_config(folder: Path) -> HfConfig:
    """Returns a folder's config.json as it stands.

    Raises UserError if there is none, if it is not JSON, or if its architecture is not known.
    """
    path = folder / "config.json"
    if not path.is_file():
        problem = "has no config.json" if folder.is_dir() else "is not there"
        raise UserError(
            f"model folder {folder} {problem}: give a Hugging Face folder "
            f"(config.json, *.safetensors, tokenizer){hub.fetch_hint(str(folder))}"
        )
    try:
        hf = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}): copy it anew") from error
    if not isinstance(hf, dict):
        raise UserError(
            f"{path} holds a {type(hf).__name__}, not an object: copy it anew"
        )
    architectures = hf.get("architectures") or ["no architecture"]
    if architectures[0] not in FAMILIES:
        raise UserError(
            f"{path} says architecture {architectures[0]}; "
            f"those known here are {', '.join(FAMILIES)}"
        )
    return hf


def load_config(folder: Path) -> ModelConfig:
    """Returns the network that a folder's config.json describes.

    Raises UserError naming the file and the field that is missing or not computed.
    """
    hf = read_hf_config(folder)
    # Families name the field; the file's name is added here.
    try:
        return family_of(hf).config_from_hf(hf)
    except KeyError as error:
        raise UserError(
            f"{folder / 'config.json'} lacks {error}: copy it anew"
        ) from error
    except UserError as error:
        raise UserError(f"{folder / 'config.json'}: {error}") from error


def max_positions(folder: Path) -> int | None:
    """Returns how many tokens the model of a folder was made for, after any scaling of its
    positions; None where config.json does not say.
    """
    positions = read_hf_config(folder).get("max_position_embeddings")
    network = load_config(folder)
    # Gemma 3, which alone has a local_rope, counts positions after scaling.
    if not positions or network.local_rope:
        return positions
    return network.rope.max_positions(positions)


class ExpectedTensor(NamedTuple):
    """A tensor that a network needs from its checkpoint."""

    path: str
    """Of the parameter in the tree."""
    shape: tuple[int, ...]
    """Of the parameter."""

    @property
    def transposed(self) -> bool:
        """Returns whether the checkpoint stores the parameter's transpose."""
        return is_transposed(self.path)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Returns the tensor's shape in the checkpoint."""
        return self.shape[::-1] if self.transposed else self.shape


def expected_tensors(folder: Path, config: ModelConfig) -> dict[str, ExpectedTensor]:
    """Returns the tensors that a folder must hold for its network, by their names there."""
    weights = family_of(read_hf_config(folder)).WEIGHTS
    return {
        checkpoint_name(weights, path): ExpectedTensor(path, leaf.shape)
        for path, leaf in named_leaves(transformer.shapes(config)).items()
    }


def check_folder(folder: Path) -> ModelConfig:
    """Returns the network that a folder describes, having checked its tensors by their headers.

    Raises UserError as load_config and load_params.
    """
    config = load_config(folder)
    stored = tensors.find_tensors(folder)
    _check_tensors(folder, config, stored, expected_tensors(folder, config))
    return config


def load_params(folder: Path, like: Params | None = None) -> Params:
    """Returns the parameters of a folder, read one tensor at a time.

    like: a jax.ShapeDtypeStruct with a sharding for each parameter. Each device's shard is read
        straight from the file, in that dtype; besides the shards of this process no more than one
        shard is held. None: numpy arrays in float32.

    Raises UserError naming the tensors that are missing, of another shape than config.json says,
    or unknown.
    """
    # 1. The headers show all that can be wrong, before the first number is read.
    config = load_config(folder)
    stored = tensors.find_tensors(folder)
    expected = expected_tensors(folder, config)
    _check_tensors(folder, config, stored, expected)

    # 2. One tensor after another, in the order of the tree.
    like_by_path = None if like is None else named_leaves(like)
    params: Params = {}
    for name, parameter in expected.items():
        leaf: np.ndarray | jax.Array
        if like_by_path is None:
            leaf = stored[name].read_all(np.float32, parameter.transposed)
        else:
            leaf = _read_shards(
                stored[name], parameter.transposed, like_by_path[parameter.path]
            )
        _insert(params, parameter.path, leaf)
    return params


def _read_shards(
    tensor: Tensor, transposed: bool, like: jax.ShapeDtypeStruct
) -> jax.Array:
    """Returns a sharded array, of which this process reads the shards of its own devices."""
    shards: list[jax.Array] = []
    last_index = None
    shard = np.zeros(0)
    for device, index in like.sharding.addressable_devices_indices_map(
        like.shape
    ).items():
        # Neighbouring devices may hold the same shard: it is read once.
        if index != last_index:
            shard = tensor.read(index, like.dtype, transposed)
            last_index = index
        # Waits for each: a shard on its way to a device is held twice.
        shards.append(jax.block_until_ready(jax.device_put(shard, device)))
    return jax.make_array_from_single_device_arrays(like.shape, like.sharding, shards)


def _check_tensors(
    folder: Path,
    config: ModelConfig,
    stored: Mapping[str, Tensor],
    expected: Mapping[str, ExpectedTensor],
) -> None:
    """Raises UserError unless a folder holds the tensors of its network, and no others."""
    missing = [name for name in expected if name not in stored]
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} of {len(expected)} tensors, "
            f"first {missing[0]}: copy it anew"
        )
    for name, parameter in expected.items():
        shape = stored[name].shape
        if shape != parameter.stored_shape:
            raise UserError(
                f"{folder}: {name} is {shape}, but config.json makes it "
                f"{parameter.stored_shape}; one is another model's"
            )
        if stored[name].dtype.name not in tensors.DTYPES.values():
            raise UserError(
                f"{folder}: {name} is quantised or of integers; "
                f"read are {', '.join(tensors.DTYPES)}"
            )
    # A tensor too many is a sign that the network has a part that is not computed here.
    unknown = [
        name
        for name in stored
        if name not in expected and not _is_redundant(name, config)
    ]
    if unknown:
        raise UserError(
            f"{folder} has {len(unknown)} tensors that config.json does not explain, "
            f"first {unknown[0]}"
        )


def _is_redundant(name: str, config: ModelConfig) -> bool:
    """Returns whether a tensor repeats what the network knows without it."""
    if name == "lm_head.weight":
        return config.tied_embeddings
    # Checkpoints of older versions of transformers hold the rotary frequencies.
    return name.endswith("rotary_emb.inv_freq")


def _insert(params: Params, path: str, leaf: np.ndarray | jax.Array) -> None:
    """Adds a leaf to a tree of dictionaries at its path."""
    *modules, last = path.split("/")
    for module in modules:
        params = params.setdefault(module, {})
    params[last] = leaf


# --- Writing ---


def save(
    params: Params,
    source: Path,
    target: Path,
    max_file_bytes: int = MAX_FILE_BYTES,
    dtype: DTypeLike | None = None,
) -> None:
    """Writes a Hugging Face folder: `source`'s config and tokenizer files, and these parameters.

    The folder appears complete or not at all. Tensors come to the host one after another. Of
    several processes all must call this; the first one writes.

    params: not stacked
    max_file_bytes: of a file; more are divided into several, with an index
    dtype: of all tensors, which config.json then says, too; None: each as it is in `source`

    Raises UserError if `target` exists.
    """
    planned = _plan_params(params, source, dtype)

    def write(folder: Path) -> None:
        for path in source.iterdir():
            if path.suffix in COPIED_SUFFIXES and path.name != tensors.INDEX:
                shutil.copy(path, folder)
        if dtype is not None:
            _set_config_dtype(folder / "config.json", jax.numpy.dtype(dtype).name)
        tensors.write_files(folder, planned, max_file_bytes)

    _appear(target, planned, write)


def save_adapters(adapters: Params, lora: Lora, source: Path, target: Path) -> None:
    """Writes a PEFT folder: adapters in float32 of the model in `source`.

    The folder appears complete or not at all, and several processes all call this, as `save`.

    adapters: not stacked

    Raises UserError if `target` exists.
    """
    weights = family_of(read_hf_config(source)).WEIGHTS
    planned: dict[str, PlannedTensor] = {}
    targets = set()
    for path, leaf in named_leaves(adapters).items():
        # layers_3/mlp/up/lora_a -> model.layers.3.mlp.up_proj, the module of the base's kernel.
        place, _, name = path.rpartition("/")
        module = checkpoint_name(weights, f"{place}/kernel").removesuffix(".weight")
        # PEFT's target_modules are last parts of names, such as up_proj.
        targets.add(module.rpartition(".")[2])
        peft_name = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight"}[name]
        # PEFT computes x A^T B^T: both are stored as the transpose of what they are here.
        planned[f"base_model.model.{module}.{peft_name}"] = _plan_tensor(
            leaf, np.dtype(np.float32), transposed=True
        )
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(source.resolve()),
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": sorted(targets),
        "bias": "none",
        "inference_mode": True,
    }

    def write(folder: Path) -> None:
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
        tensors.write_file(folder / "adapter_model.safetensors", planned)

    _appear(target, planned, write)


def _plan_params(
    params: Params, source: Path, dtype: DTypeLike | None
) -> dict[str, PlannedTensor]:
    """Returns the tensors to write for parameters, under their names in the checkpoint.

    dtype: of all; None: as in the weights of `source`, or as its config.json says where it has
        none
    """
    hf = read_hf_config(source)
    weights = family_of(hf).WEIGHTS
    config_dtype = jax.numpy.dtype(_config_dtype(hf))
    stored = tensors.find_tensors(source) if any(source.glob("*.safetensors")) else {}
    planned = {}
    for path, leaf in named_leaves(params).items():
        name = checkpoint_name(weights, path)
        if dtype is not None:
            tensor_dtype = jax.numpy.dtype(dtype)
        else:
            tensor_dtype = stored[name].dtype if name in stored else config_dtype
        planned[name] = _plan_tensor(leaf, tensor_dtype, is_transposed(path))
    return planned


def _plan_tensor(
    leaf: np.ndarray | jax.Array, dtype: np.dtype, transposed: bool
) -> PlannedTensor:
    """Returns the plan to write an array, which stays where it is until its turn comes."""
    shape = leaf.shape[::-1] if transposed else leaf.shape
    return PlannedTensor(dtype, shape, partial(_fetch, leaf, transposed))


def _fetch(leaf: np.ndarray | jax.Array, transposed: bool) -> np.ndarray:
    """Returns an array on the host as it is written; all processes must call this."""
    array = np.asarray(to_host(leaf))
    return array.T if transposed else array


def _config_dtype(hf: HfConfig) -> str:
    """Returns the dtype that a config.json says; torch_dtype is its old spelling."""
    return hf.get("dtype") or hf.get("torch_dtype") or "float32"


def _set_config_dtype(path: Path, dtype: str) -> None:
    """Sets the dtype of a config.json; one that says so already stays the same byte for byte."""
    hf = json.loads(path.read_text())
    if _config_dtype(hf) == dtype:
        return
    # The new spelling replaces the old one.
    hf.pop("torch_dtype", None)
    hf["dtype"] = dtype
    path.write_text(json.dumps(hf, indent=2) + "\n")


def _appear(
    target: Path, planned: Mapping[str, PlannedTensor], write: Callable[[Path], None]
) -> None:
    """Has a folder appear at `target`, complete or not at all.

    planned: the tensors that `write` fetches; the other processes fetch the same, in that order
    write: fills the folder; called by the first process alone

    Raises UserError if `target` exists.
    """
    if target.exists():
        raise UserError(f"{target} is there already: name a folder that is not")
    if jax.process_index():
        # Gathering an array from several processes takes all of them.
        for tensor in planned.values():
            tensor.make_array()
        return
    # It is filled under another name; renaming a folder is atomic.
    partial_target = target.with_name(target.name + ".partial")
    # A process that was killed may have left one.
    shutil.rmtree(partial_target, ignore_errors=True)
    partial_target.mkdir(parents=True)
    try:
        write(partial_target)
        partial_target.rename(target)
    finally:
        shutil.rmtree(partial_target, ignore_errors=True)
