"""Arranges devices as the array that a mesh is made of, and divides a CPU into several devices."""

import contextlib
import os
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from jax.experimental import mesh_utils

from jaxgrpo.errors import UserError

MAX_CPU_DEVICES = 4
"""More CPU devices gain little, and without mesh.fsdp each holds all parameters."""


@runtime_checkable
class Device(Protocol):
    """The part of jax.Device that a mesh is built from; tests have stand-ins."""

    @property
    def id(self) -> int:
        """The number of the device among those of all processes."""

    @property
    def platform(self) -> str:
        """One of "cpu", "gpu" and "tpu"."""

    @property
    def process_index(self) -> int:
        """The process that the device is attached to."""


def arrange(sizes: Sequence[int], devices: Sequence[Device]) -> np.ndarray:
    """Returns the devices as an array [data, fsdp, tensor].

    `data` is the only axis that spans several slices of TPUs, and `tensor` stays within a process.
    A TPU's devices are arranged by its network where that allows it, others process by process.

    Raises UserError if the sizes do not allow it.
    """
    slices = len({_slice_index(device) for device in devices})
    if sizes[0] % slices:
        raise UserError(
            f"mesh.data is {sizes[0]}: it must be a multiple of the {slices} slices, "
            "which divide the rows"
        )
    # 1. The order that suits a TPU's network best, if it keeps `tensor` within a process.
    if devices[0].platform == "tpu":
        by_network = _arrange_by_network(sizes, devices, slices)
        if by_network is not None and _tensor_is_within_process(by_network):
            return by_network
    # 2. Otherwise one process after another: the last axis then varies within a process.
    ordered = sorted(devices, key=_process_order)
    by_process = np.asarray(ordered).reshape(sizes)
    if not _tensor_is_within_process(by_process):
        processes = len({device.process_index for device in devices})
        raise UserError(
            f"mesh.tensor is {sizes[2]}: it must divide the {len(devices) // processes} devices "
            "of a process, for it stays within one"
        )
    return by_process


def _arrange_by_network(
    sizes: Sequence[int], devices: Sequence[Device], slices: int
) -> np.ndarray | None:
    """Returns TPU devices arranged so that neighbours in the mesh are linked.

    None: JAX does not know the network of these devices, or cannot lay out such sizes on it.
    """
    try:
        if slices == 1:
            return mesh_utils.create_device_mesh(
                sizes, devices, allow_split_physical_axes=True
            )
        # Between slices there is only the slower network of the data centre: `data` alone spans it.
        sizes_within_slice = [sizes[0] // slices, *sizes[1:]]
        sizes_across_slices = [slices, 1, 1]
        return mesh_utils.create_hybrid_device_mesh(
            sizes_within_slice,
            sizes_across_slices,
            devices,
            allow_split_physical_axes=True,
        )
    except (NotImplementedError, ValueError, AssertionError):
        return None


def _process_order(device: Device) -> tuple[int, int, int]:
    """Returns the key that sorts devices slice by slice, and process by process within a slice."""
    return _slice_index(device), device.process_index, device.id


def _slice_index(device: Device) -> int:
    """Returns which slice a TPU device is in: a slice has a fast network of its own. Others: 0."""
    return getattr(device, "slice_index", 0) if device.platform == "tpu" else 0


def _tensor_is_within_process(devices: np.ndarray) -> bool:
    """Returns True if no group of devices along the last axis spans several processes."""
    for group in devices.reshape(-1, devices.shape[-1]):
        if len({device.process_index for device in group}) > 1:
            return False
    return True


def divide_cpu(devices: int, rows_per_device: int) -> None:
    """Has JAX divide the CPU into `devices` devices, or 2, 4, ... times as many.

    Decoding is a sequence of small operations, most of which use one core of a device however many
    the device has. So it is faster with more devices, as far as cores and rows allow.

    rows_per_device: rows that each of `devices` would have; the factor 2, 4, ... must divide them

    Does nothing if the user has chosen a number, or if this is one of several processes.
    """
    # A number that the user has chosen stays.
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    if "JAX_NUM_CPU_DEVICES" in os.environ:
        return
    # Several processes may share this CPU.
    if jax.distributed.is_initialized():
        return
    max_devices = min(os.cpu_count() or 1, MAX_CPU_DEVICES)
    times = 1
    while 2 * times * devices <= max_devices and rows_per_device % (2 * times) == 0:
        times *= 2
    # RuntimeError: JAX has already opened its devices, and keeps those.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", times * devices)
