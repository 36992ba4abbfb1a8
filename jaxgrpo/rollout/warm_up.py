"""Compiles the programs of sampling before the first session needs them."""

import numpy as np
from jaxtyping import Bool, Int

from jaxgrpo.rollout.pending import new_rows
from jaxgrpo.rollout.protocols import SamplingPrograms
from jaxgrpo.types import Params, SamplingParams


def warm_up(
    programs: SamplingPrograms,
    params: Params,
    prompts: tuple[Int[np.ndarray, "A W"], Bool[np.ndarray, "A W"]],
) -> None:
    """Calls every program in each of its shapes, and seals those that every session calls.

    prompts: tokens and mask of a prefill
    """
    # 1. The copy that is decoded from.
    published = programs.publish(params)
    prefilled = programs.prefill(published, *prompts)
    all_slots = programs.slot_counts[0]
    no_rows = new_rows([], programs.rows_per_insert, no_slot=all_slots)
    sampling = SamplingParams().as_arrays()
    # 2. Every ring length with every number of slots, and the ways between them.
    for ring_length in programs.ring_lengths:
        state = programs.empty_state(all_slots, ring_length)
        state = programs.insert(state, prefilled, no_rows)
        longer_rings = [
            length for length in programs.ring_lengths if length > ring_length
        ]
        for slots in programs.slot_counts:
            if slots < all_slots:
                state = programs.compact(state, np.arange(slots, dtype=np.int32))
            stopped = np.ones(slots, bool)
            state, _ = programs.decode(
                published, state, stopped, sampling, np.int32(0), np.int32(0)
            )
            if longer_rings:
                programs.grow(programs.empty_state(slots, ring_length), longer_rings[0])
    # 3. From now on a compile is a bug: something is not traced that ought to be.
    for program in (
        programs.prefill,
        programs.insert,
        programs.decode,
        programs.compact,
    ):
        program.seal()
