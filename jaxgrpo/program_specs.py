"""What programs are compiled for, as a config says: shared by both kinds of training."""

from collections.abc import Mapping

import jax.numpy as jnp
from jax.sharding import Mesh

from jaxgrpo.config import Config
from jaxgrpo.config.sizes import num_slots
from jaxgrpo.device.optimizer import Optimizer, Schedule, adamw, schedule
from jaxgrpo.device.specs import ModelSpec, Precision, SamplingSpec
from jaxgrpo.errors import UserError
from jaxgrpo.models.model_config import ModelConfig


def model_spec(config: Config, network: ModelConfig, mesh: Mesh) -> ModelSpec:
    """Returns the model as a config has it stored, on its mesh."""
    return ModelSpec(
        network=network,
        mesh=mesh,
        precision=Precision(
            compute=jnp.dtype(config.dtype),
            params=jnp.dtype(config.optimizer.params_dtype),
            optimizer=jnp.dtype(config.optimizer.state_dtype),
            int8_sampler=config.sampling.weights == "int8",
        ),
        adapters=config.lora,
        scan_layers=config.compute.scan_layers,
        attention=config.compute.attention,
    )


def sampling_spec(config: Config, eos_ids: tuple[int, ...]) -> SamplingSpec:
    """Returns the shapes of sampling."""
    return SamplingSpec(
        prompt_width=config.sampling.prompt_width,
        new_tokens=config.sampling.max_new_tokens,
        slots=num_slots(config),
        eos_ids=eos_ids,
        group_size=config.batch.group_size,
        chunk=config.sampling.chunk,
    )


def learning_rates(config: Config) -> Schedule:
    """Returns the learning rate as a function of the step, from 0."""
    optimizer = config.optimizer
    return schedule(
        optimizer.schedule,
        optimizer.learning_rate,
        optimizer.warmup_steps,
        config.steps,
    )


def build_optimizer(config: Config) -> Optimizer:
    """Returns the optimizer that a config describes."""
    optimizer = config.optimizer
    return adamw(
        learning_rates(config),
        optimizer.b1,
        optimizer.b2,
        optimizer.weight_decay,
        optimizer.max_grad_norm,
    )


def check_shares(sizes: Mapping[str, int], shards: int) -> None:
    """Raises UserError for a first axis, by the setting's name, that devices cannot share evenly.

    shards: devices that rows are divided over
    """
    for name, size in sizes.items():
        if size % shards:
            raise UserError(
                f"{name} is {size}: it must be a multiple of mesh.data * mesh.fsdp = {shards} "
                "devices"
            )
