"""Small random models for tests: the embedded tokenizer, a network of a few thousand parameters."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from jaxgrpo.distributed.mesh import named_leaves, path_name
from jaxgrpo.models import hf_folder, transformer
from jaxgrpo.models.model_config import ModelConfig

NETWORK = ModelConfig(
    vocab_size=48,
    width=16,
    layers=2,
    heads=4,
    kv_heads=2,
    head_width=4,
    mlp_width=24,
    tied_embeddings=True,
    qkv_bias=True,
)


def random_params(config: ModelConfig, seed: int = 0):
    """Returns random parameters, large enough for peaked distributions, and for norms and biases
    to matter."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf) -> jax.Array:
        mean = 1.0 if path_name(path).endswith("scale") else 0.0
        return jnp.asarray(rng.normal(mean, 0.3, leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, transformer.shapes(config))


def make_folder(
    folder: Path, architecture: str = "LlamaForCausalLM", seed: int = 0, **changes
) -> Path:
    """Writes a Hugging Face folder with the embedded model's tokenizer and a random network.

    changes: fields of config.json; by default the network is 16 wide and has 2 layers
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.model", "tokenizer_config.json", "tokenizer.json"):
        if (hf_folder.EMBEDDED / name).exists():
            shutil.copy(hf_folder.EMBEDDED / name, folder)
    hf = json.loads((hf_folder.EMBEDDED / "config.json").read_text()) | {
        "architectures": [architecture],
        "model_type": architecture.removesuffix("ForCausalLM").lower(),
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(hf))
    config = hf_folder.load_config(folder)
    params = named_leaves(jax.device_get(random_params(config, seed)))
    tensors = {}
    for name, expected in hf_folder.expected_tensors(folder, config).items():
        leaf = params[expected.path]
        stored = leaf.T if expected.transposed else leaf
        tensors[name] = np.ascontiguousarray(stored, dtype=jnp.dtype(hf["dtype"]))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
