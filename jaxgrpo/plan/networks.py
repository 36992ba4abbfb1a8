"""The network of a planned run: from its model folder, or known by the model's name."""

import json
from dataclasses import dataclass
from pathlib import Path

from jaxgrpo.build import match_tokenizer, model_folder
from jaxgrpo.errors import UserError
from jaxgrpo.models import hf_folder, transformer
from jaxgrpo.models.model_config import ModelConfig
from jaxgrpo.text import tokenizer

SHAPES = Path(__file__).parent / "shapes"
"""The facts of known models' config.json files, under the models' names."""


@dataclass(frozen=True)
class Network:
    """A network to plan for.

    config: its layers and sizes
    eos_ids: the token ids that end a completion
    source: where both come from, in words
    """

    config: ModelConfig
    eos_ids: tuple[int, ...]
    source: str


def known_networks() -> dict[str, Path]:
    """Returns, for each network known by name, the file with its config.json's facts."""
    return {path.stem: path for path in SHAPES.glob("*.json")}


def find_network(model: str) -> Network:
    """Returns the network that a config's `model` means.

    It is the folder's, or, where there is no folder, that of the known model of the same name.

    Raises UserError if there is neither, or if its architecture is not known here.
    """
    folder = model_folder(model)
    if folder.is_dir():
        config, tokens = match_tokenizer(
            folder, hf_folder.load_config(folder), tokenizer.load(folder)
        )
        return Network(config, tokens.eos_ids, f"the folder {folder}")
    # Shapes are enough to plan: there need be no weights and no tokenizer.
    known = known_networks()
    path = known.get(folder.name) or known.get(folder.name.removesuffix("-Instruct"))
    if path is None:
        names = ", ".join(sorted(known))
        raise UserError(
            f"model folder {folder} is not there, and the networks known by name are {names}, "
            f"not {folder.name}"
        )
    hf_config = json.loads(path.read_text())
    architecture = hf_config["architectures"][0]
    family = hf_folder.FAMILIES.get(architecture)
    if family is None:
        families = ", ".join(hf_folder.FAMILIES)
        raise UserError(
            f"{folder.name} is a {architecture}; those known here are {families}"
        )
    # One id, or a list of them.
    ends = hf_config["eos_token_id"]
    return Network(
        family.config_from_hf(hf_config),
        tuple(ends) if isinstance(ends, list) else (ends,),
        f"what is known of {path.stem}: there is no folder {folder}",
    )


def count_parameters(config: ModelConfig) -> int:
    """Returns how many parameters a network has."""
    return transformer.parameter_count(transformer.shapes(config))
