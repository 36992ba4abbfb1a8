"""A run's own programs, compiled ahead of time for devices that need not be here."""

import hashlib
import json
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval

from jaxgrpo.build import match_tokenizer, model_folder
from jaxgrpo.config import Config
from jaxgrpo.distributed.mesh import device_bytes
from jaxgrpo.errors import UserError
from jaxgrpo.models import hf_folder, lora, transformer
from jaxgrpo.models.model_config import ModelConfig
from jaxgrpo.plan import hlo
from jaxgrpo.programs import Programs
from jaxgrpo.text import tokenizer
from jaxgrpo.types import TrainBatch

SHAPES = Path(__file__).parent / "shapes"
"""What the config.json files of known models say of their networks, under the models' names."""

Like = jax.ShapeDtypeStruct


@dataclass(frozen=True)
class Network:
    """config: the network; ends: the ids that end a completion; source: where both come from, in words."""

    config: ModelConfig
    ends: tuple[int, ...]
    source: str


def known() -> dict[str, Path]:
    """The networks that are known by name, and where their config.json's facts are."""
    return {path.stem: path for path in SHAPES.glob("*.json")}


def network(model: str) -> Network:
    """Of a config's `model`: of the folder, or, where it is not there, of the known model of the same name."""
    folder = model_folder(model)
    if folder.is_dir():
        model, tokens = match_tokenizer(
            folder, hf_folder.load_config(folder), tokenizer.load(folder)
        )
        return Network(model, tokens.eos_ids, f"the folder {folder}")
    path = known().get(folder.name) or known().get(folder.name.removesuffix("-Instruct"))
    if path is None:
        names = ", ".join(sorted(known()))
        raise UserError(
            f"model folder {folder} is not there, and the networks known by name are {names}, not {folder.name}"
        )
    hf = json.loads(path.read_text())
    family, ends = hf_folder.FAMILIES.get(hf["architectures"][0]), hf["eos_token_id"]
    if family is None:
        raise UserError(
            f"{folder.name} is a {hf['architectures'][0]}; those known here are {', '.join(hf_folder.FAMILIES)}"
        )
    source = f"what is known of {path.stem}: there is no folder {folder}"
    return Network(
        family.config_from_hf(hf), tuple(ends) if isinstance(ends, list) else (ends,), source
    )


@dataclass(frozen=True)
class Arguments:
    """Everything that a run's programs work on, as shapes with shardings."""

    steps: Programs
    published: Any
    slots: Any
    """As many and with as long a ring as there can be."""
    prefilled: Any
    reference: Any
    batch: TrainBatch
    calls: dict[str, tuple[Any, tuple]]
    """A program's name -> what can be traced, and its arguments."""


def arguments(config: Config, steps: Programs) -> Arguments:
    """What the run of this config gives its programs."""
    rows, width = config.batch.groups * config.batch.group_size, config.sampling.prompt_width
    length = width + config.sampling.max_new_tokens
    row = lambda kind, *sizes: Like(sizes, kind, sharding=steps.rows)
    host = lambda kind, *sizes: Like(sizes, kind)
    reference = result(steps.refer, steps.params_like)
    published = result(steps.publish, lora.attach(reference, steps.state_like.params))
    slots = result(steps.empty, steps.sizes[0], steps.rings[-1])
    read = published, host(jnp.int32, steps.prompts, width), host(bool, steps.prompts, width)
    prefilled = result(steps.prefill, *read)
    batch = TrainBatch(
        tokens=row(jnp.int32, rows, length),
        segments=row(jnp.int32, rows, length),
        completion_mask=row(bool, rows, length),
        rewards=row(jnp.float32, rows),
        sampler_logprobs=row(jnp.float32, rows, length),
        trained=row(bool, rows),
    )
    starts = (*[host(jnp.int32, steps.starts)] * 3, host(jnp.uint32, steps.starts, 2))
    how = (config.sampling.temperature, 0, 1.0, 0.0, 0)
    bounds = host(bool, steps.sizes[0]), how, host(jnp.int32), host(jnp.int32)
    calls = {
        "prefill": (steps.prefill, read),
        "insert": (steps.insert, (slots, prefilled, starts)),
        "decode": (steps.decode, (published, slots, *bounds)),
        "update": (
            steps.update,
            (steps.state_like, reference, batch, config.objective, config.sampling.temperature),
        ),
    }
    return Arguments(steps, published, slots, prefilled, reference, batch, calls)


def result(program: Any, *given: Any) -> Any:
    """What a program returns, as shapes with shardings."""
    traced = program.trace(*given)
    shardings = traced.lower().out_info
    return jax.tree.map(
        lambda leaf: Like(leaf.shape, leaf.dtype, sharding=leaf.sharding), shardings
    )


@dataclass(frozen=True)
class Compiled:
    """A program on one device, in bytes; failed: how the compiler said that it does not fit ("": it does). Then `temporaries`
    are what it wanted, and nothing else of it is known."""

    name: str
    shapes: float
    """Of its arguments that live on the device, by their shapes."""
    arguments: float
    """Of all of them, as the compiler lays them out: in tiles, on a TPU."""
    temporaries: float
    unaliased: float
    """Of its results what is not written over its arguments."""
    code: float
    cost: hlo.Cost
    """Loops as often as they run, attention kernels included."""
    once: hlo.Cost
    """The same with each loop's body once."""
    written: float
    """FLOPs of its matrix products as they are written, a device's share; more are computed where devices repeat work."""
    compiler_flops: float
    """As cost_analysis has it: each loop's body once."""
    compiler_bytes: float
    seconds: float
    failed: str = ""


@dataclass
class Compiler:
    """Compiles, and remembers what it has compiled. say: told what is being compiled."""

    say: Callable[[str], None] = lambda _: None
    known: dict[str, Compiled] = field(default_factory=dict)

    def __call__(self, name: str, program: Any, given: tuple) -> Compiled:
        traced = program.trace(*given)
        lowered = traced.lower()
        key = hashlib.sha256(lowered.as_text().encode()).hexdigest()
        if key not in self.known:
            self.say(f"compiling {name} ...")
            self.known[key] = _compile(name, lowered, given, traced.jaxpr)
            self.say(f"compiled {name} in {self.known[key].seconds:.0f} s")
        return self.known[key]


def _compile(name: str, lowered: Any, given: tuple, jaxpr: Any) -> Compiled:
    begin, devices = time.perf_counter(), device_count(given)
    written, nothing = written_flops(jaxpr, devices), hlo.Cost()
    shapes = device_bytes(
        [leaf for leaf in jax.tree.leaves(given) if getattr(leaf, "sharding", None)]
    )
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        wanted = wanted_bytes(str(error))
        if wanted is None:
            raise
        seconds = time.perf_counter() - begin
        said = str(error).splitlines()[0]
        return Compiled(
            name, shapes, shapes, wanted, 0, 0, nothing, nothing, written, 0, 0, seconds, said
        )
    seconds, memory, text = (
        time.perf_counter() - begin,
        compiled.memory_analysis(),
        compiled.as_text(),
    )
    analysis, cost = compiled.cost_analysis() or {}, hlo.cost(text)
    cost.flops += written_flops(jaxpr, devices, kernels=True)
    return Compiled(
        name,
        shapes,
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        memory.output_size_in_bytes - memory.alias_size_in_bytes,
        memory.generated_code_size_in_bytes,
        cost,
        hlo.cost(text, loops=False),
        written,
        analysis.get("flops", 0.0),
        analysis.get("bytes accessed", 0.0),
        seconds,
    )


def device_count(given: Any) -> int:
    """Over how many devices a program's arguments are spread."""
    return max(
        len(leaf.sharding.device_set)
        for leaf in jax.tree.leaves(given)
        if getattr(leaf, "sharding", None)
    )


def written_flops(jaxpr: Any, devices: int, kernels: bool = False) -> float:
    """FLOPs of the matrix products of a program as it is written, a device's share; loops of known length as often as they run.

    Products that no result is made of do not count, such as gradients of what LoRA freezes.

    kernels: only those in Pallas kernels, which the compiled text does not show; they are in a shard_map, one device's. Blocks
    that a kernel skips count, and so causal attention counts twice.
    """
    live, _ = partial_eval.dce_jaxpr(jaxpr.jaxpr, [True] * len(jaxpr.jaxpr.outvars))
    return _product_flops(live, devices, kernels)


def _product_flops(jaxpr: Any, devices: int, kernels: bool, where: str = "") -> float:
    """Returns `written_flops` of a part of a program.

    where: the shard_map or the Pallas kernel that it is in ("": neither)
    """
    total = 0.0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name, given = equation.primitive.name, equation.params
        if name == "dot_general" and (where == "pallas_call" or not kernels):
            contracted = [
                equation.invars[0].aval.shape[axis] for axis in given["dimension_numbers"][0][0]
            ]
            total += (
                2.0
                * math.prod(equation.outvars[0].aval.shape)
                * math.prod(contracted)
                / (1 if where else devices)
            )
        inner = [
            value
            for item in given.values()
            for value in (item if isinstance(item, tuple | list) else (item,))
        ]
        programs = [value for value in inner if hasattr(value, "eqns") or hasattr(value, "jaxpr")]
        within = name if name in ("shard_map", "pallas_call") else where
        each = [_product_flops(program, devices, kernels, within) for program in programs]
        times = (
            given["length"]
            if name == "scan"
            else math.prod(given["grid_mapping"].grid)
            if name == "pallas_call"
            else 1
        )
        total += times * (max(each, default=0.0) if name == "cond" else sum(each))
    return total


def wanted_bytes(message: str) -> float | None:
    """What a program would need besides its arguments, from the compiler's refusal; None if it speaks of something else."""
    found = re.search(r"temporaries \(([\d.]+)([KMGT])\) exceeds available HBM", message)
    found = found or re.search(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm", message)
    return float(found[1]) * 1024 ** (1 + "KMGT".index(found[2])) if found else None


def parameters(model: ModelConfig) -> int:
    """How many numbers the network is."""
    return transformer.parameter_count(transformer.shapes(model))
