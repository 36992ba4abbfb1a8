"""TPU chips: peak figures from Google's documentation, and topologies to compile for.

v5e https://cloud.google.com/tpu/docs/v5e      v6e https://cloud.google.com/tpu/docs/v6e
v5p https://cloud.google.com/tpu/docs/v5p      v4  https://cloud.google.com/tpu/docs/v4
tpu7x (Ironwood) https://docs.cloud.google.com/tpu/docs/tpu7x

Published shares of the peak FLOP/s (MFU) are MaxText's, of training dense models of 8B and more:
https://github.com/AI-Hypercomputer/maxtext, src/maxtext/configs/tpu/{v4,v5e,v5p}/README.md, and for
v6e docs/reference/models/tiering.md.
"""

import math
import os
import re
from dataclasses import dataclass

import jax

from jaxgrpo.errors import UserError

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One kind of chip, as JAX sees it: a device, or a part of the chip where it is several.

    name: what --topology calls it
    hbm: bytes that libtpu 0.0.42 lets a program have ("exceeds available HBM (15.75G)"); the
        documentation says 16, 32, 95, 32 and 96 GB
    flops: FLOP/s at peak, in bfloat16
    bandwidth: bytes/s of HBM
    ici: bytes/s that a device can receive from all its neighbours together: half of the
        documentation's bidirectional figure; for v4 the all-reduce bandwidth of a pod (1.1 PB/s)
        over its 4,096 chips; for tpu7x half of its chip's, without the link to the other half
    kind: JAX's device_kind
    accelerator: TPU_ACCELERATOR_TYPE up to its number
    mfu: lowest and highest published share of `flops` in training; None: none is published
    cores: TensorCores of a chip; the number in TPU_ACCELERATOR_TYPE counts them
    axes: axes of a topology
    devices: of one chip
    """

    name: str
    hbm: float
    flops: float
    bandwidth: float
    ici: float
    kind: str
    accelerator: str
    mfu: tuple[float, float] | None
    cores: int = 1
    axes: int = 2
    devices: int = 1


CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            name="v5e",
            hbm=15.75 * GIB,
            flops=197e12,
            bandwidth=819e9,
            ici=200e9,
            kind="TPU v5 lite",
            accelerator="v5litepod",
            mfu=(0.46, 0.67),
        ),
        Chip(
            name="v6e",
            hbm=31.25 * GIB,
            flops=918e12,
            bandwidth=1638e9,
            ici=400e9,
            kind="TPU v6 lite",
            accelerator="v6e",
            mfu=(0.39, 0.50),
        ),
        Chip(
            name="v5p",
            hbm=95.74 * GIB,
            flops=459e12,
            bandwidth=2765e9,
            ici=600e9,
            kind="TPU v5",
            accelerator="v5p",
            mfu=(0.52, 0.71),
            cores=2,
            axes=3,
        ),
        Chip(
            name="v4",
            hbm=30.75 * GIB,
            flops=275e12,
            bandwidth=1200e9,
            ici=1.1e15 / 4096,
            kind="TPU v4",
            accelerator="v4",
            mfu=(0.53, 0.59),
            cores=2,
            axes=3,
        ),
        Chip(
            name="tpu7x",
            hbm=94.75 * GIB,
            flops=2307e12 / 2,
            bandwidth=7380e9 / 2,
            ici=600e9 / 2,
            kind="TPU7x",
            accelerator="tpu7x",
            mfu=None,
            cores=2,
            axes=3,
            devices=2,
        ),
    )
}


def parse_topology(topology: str) -> tuple[Chip, tuple[int, ...]]:
    """Returns the chip and the shape of a topology: v5e:4x4 is the chip v5e and (4, 4).

    Raises UserError if it is not in this notation, or not of a known chip.
    """
    # A chip's name, then a size for each axis: ("v5e", "4x4").
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", topology)
    chip = CHIPS.get(match[1]) if match else None
    shape = tuple(int(size) for size in match[2].split("x")) if match else ()
    if chip is None or len(shape) != chip.axes or min(shape) < 1:
        raise UserError(
            f"--topology {topology}: it must be like v5e:4x4, v6e:2x4, v5p:2x2x1, "
            "v4:2x2x2 or tpu7x:2x2x1"
        )
    return chip, shape


def topology_devices(topology: str) -> tuple[Chip, list[jax.Device]]:
    """Returns the chip and the devices of a topology, to compile for; they need not be here.

    To be called before JAX has looked for devices.

    Raises UserError without libtpu, and for a shape that libtpu does not know.
    """
    chip, shape = parse_topology(topology)
    chips = math.prod(shape)
    # libtpu would ask the metadata server of a TPU machine for these.
    os.environ.update(
        TPU_SKIP_MDS_QUERY="1",
        TPU_ACCELERATOR_TYPE=f"{chip.accelerator}-{chips * chip.cores}",
        TPU_WORKER_HOSTNAMES="localhost",
        TPU_WORKER_ID="0",
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",  # nothing runs: two plans need not wait for each other
    )
    # The host's arrays are on its CPU; the TPU is only described.
    jax.config.update("jax_platforms", "cpu")
    try:
        import libtpu  # noqa: F401
    except ImportError:
        raise UserError(
            "compiling for a TPU needs libtpu: pip install 'jax[tpu]'"
        ) from None
    from jax.experimental import topologies

    # JAX numbers a v4 chip as one device, both its cores together.
    options: dict[str, str | tuple[int, ...]] = {}
    if chip.name == "v4":
        options["chip_config_name"] = "megacore"
    if chips in (1, 2, 4, 8) and chip.axes == 2:  # one machine holds them all
        options["chips_per_host_bounds"] = (*shape, 1)
    try:
        description = topologies.get_topology_desc(topology, "tpu", **options)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--topology {topology}: libtpu does not know it ({reason})"
        ) from error
    return chip, list(description.devices)


def chip_of_device(device: jax.Device) -> Chip | None:
    """Returns the chip that a device here is; None if it is none of CHIPS."""
    for chip in CHIPS.values():
        if chip.kind == device.device_kind:
            return chip
    return None
