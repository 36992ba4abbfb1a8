"""The records that programs are compiled for: a model on its mesh, shapes of sampling and updates.

None of their fields is traced: another value is another program.
"""

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from jaxgrpo.device.optimizer import cast
from jaxgrpo.models import lora, transformer
from jaxgrpo.models.lora import Lora
from jaxgrpo.models.model_config import ModelConfig
from jaxgrpo.types import Params

MAX_DIVIDED_PARAMETERS = 16_000_000
"""Parameters of a model for which a CPU is divided into devices, at most: 64 MB in float32."""


@dataclass(frozen=True)
class Precision:
    """Dtypes of a model.

    compute: of matrix products, and of what sampler and reference hold
    params: of the trained parameters, as they are stored
    optimizer: of the optimizer's moments, as they are stored
    int8_sampler: whether the sampler's matrices are int8 instead (see models/int8.py)
    """

    compute: DTypeLike = jnp.float32
    params: DTypeLike = jnp.float32
    optimizer: DTypeLike = jnp.float32
    int8_sampler: bool = False


@dataclass(frozen=True)
class ModelSpec:
    """A network, the mesh it lives on and how it is stored: what all of its programs share.

    adapters: what is trained in the place of every parameter
    scan_layers: the update scans over layers, whose parameters are stacked
    attention: kernel of prompts and updates, "auto" or "cudnn" (see config.Compute)
    """

    network: ModelConfig
    mesh: Mesh
    precision: Precision = Precision()
    adapters: Lora = lora.NO_LORA
    scan_layers: bool = False
    attention: str = "auto"

    def layout(self, params: Params) -> Params:
        """Returns parameters as the update has them, stacked or not."""
        return (
            transformer.stack(params)
            if self.scan_layers
            else transformer.unstack(params)
        )

    def loaded_shapes(self) -> Params:
        """Returns the parameters that are read from a folder, as jax.ShapeDtypeStruct."""
        # With adapters the model is not trained. It is loaded in float32, and rounded once, to the
        # compute dtype, by the reference.
        dtype = jnp.float32 if self.adapters.rank else self.precision.params
        return jax.eval_shape(
            partial(cast, dtype=dtype), transformer.shapes(self.network)
        )


@dataclass(frozen=True)
class SamplingSpec:
    """The fixed shapes of sampling.

    prompt_width: W, columns of a prompt
    new_tokens: N, tokens of a completion, at most
    slots: rows that are sampled side by side
    eos_ids: ids that end a completion
    group_size: G, rows that start from each prompt
    chunk: decode steps of one call, at most, after which the host looks for rows that have ended
    """

    prompt_width: int
    new_tokens: int
    slots: int
    eos_ids: tuple[int, ...]
    group_size: int = 1
    chunk: int = 32


@dataclass(frozen=True)
class UpdateSpec:
    """The fixed shapes of an update.

    micro_batch: rows of one forward and backward pass, a divisor of the batch; 0: all rows. Where
        rows are packed, bins; 0: one a device
    group_size: G, rows of a prompt
    prompt_width: W, where the rows of a group share a prompt that is read once for them all, and
        tokens right of it are scored; None: every row is read by itself, and all of it is scored
    pack: S, the columns of the bins that rows are packed into; 0: they are not. With prompt_width
    old_logprobs: whose log-probabilities the ratio is taken to, the "sampler"'s or the "trainer"'s
    remat: what is kept of each layer for the backward pass, one of transformer.REMAT
    scores_reference: whether the loss reads the reference's log-probabilities
    """

    micro_batch: int = 0
    group_size: int = 1
    prompt_width: int | None = None
    pack: int = 0
    old_logprobs: str = "sampler"
    remat: str = "none"
    scores_reference: bool = True


def dividing_rows(network: ModelConfig, *row_counts: int) -> int:
    """Returns the number of rows that devices of a divided CPU may share; 1: it is not divided.

    Devices of a CPU read each matrix for themselves. One that does not fit their caches is read
    once, by a device of all cores.
    """
    parameters = transformer.parameter_count(transformer.shapes(network))
    if parameters > MAX_DIVIDED_PARAMETERS:
        return 1
    return math.gcd(*row_counts)
