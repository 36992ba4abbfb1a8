"""What lives beside each other on a device in each phase of a run, by part."""

from jaxgrpo.config import Config
from tools.plan_programs import Arguments, Compiled, device_bytes, result

Parts = dict[str, float]
"""Bytes by part; a phase's parts sum to what it needs."""

PARTS = (
    *("parameters", "optimizer", "reference", "published copy", "slots (KV cache)", "slots, made anew", "prompts read"),
    *("batch", "results", "temporaries", "programs"),
)


def phases(config: Config, given: Arguments, compiled: dict[str, Compiled]) -> dict[str, Parts]:
    """Each phase's parts.

    A run holds its policy's state and the reference all the time; from a step's first prompt to its last completion also the
    copy that is sampled from, the slots and the prompts read last. Where slots are made anew (a longer ring, fewer rows), the
    old are there until the new are. With sampling.keep_in_flight all of these stay through the update.
    """
    steps = given.steps
    state = {
        "parameters": device_bytes(steps.state_like.params),
        "optimizer": device_bytes((steps.state_like.step, steps.state_like.opt_state)),
        "reference": device_bytes(given.reference),
        "programs": sum(program.code for program in compiled.values()),
    }
    sampling = {
        "published copy": device_bytes(given.published),
        "slots (KV cache)": device_bytes(given.slots),
        "prompts read": device_bytes(given.prefilled),
    }
    kept = sampling if config.sampling.keep_in_flight else {}
    updating = kept | {"batch": device_bytes(given.batch)}
    lives = {"prefill": sampling, "insert": sampling, "decode": sampling, "update": updating}
    found = {name: state | lives[name] | _own(program) for name, program in compiled.items()}
    again = kept.get("published copy", 0)
    found["publish"] = state | kept | {"published copy": sampling["published copy"] + again}
    if "decode" in compiled and (most := _made_anew(given)):
        old, new = most
        found["new slots"] = state | sampling | {"slots (KV cache)": old, "slots, made anew": new}
    return found


def _own(program: Compiled) -> Parts:
    return {"results": program.unaliased, "temporaries": program.temporaries}


def _made_anew(given: Arguments) -> tuple[int, int] | None:
    """Bytes of slots before and after the change of theirs that takes the most together; None if they never change."""
    steps, pairs = given.steps, []
    slots = lambda size, ring: device_bytes(result(steps.empty, size, ring))
    whole = device_bytes(given.slots)
    if len(steps.rings) > 1:
        pairs.append((slots(steps.sizes[0], steps.rings[-2]), whole))
    if len(steps.sizes) > 1:
        pairs.append((whole, slots(steps.sizes[1], steps.rings[-1])))
    return max(pairs, key=sum, default=None)


def peak(found: dict[str, Parts]) -> tuple[str, float]:
    """The phase that needs the most, and its bytes."""
    name = max(found, key=lambda phase: sum(found[phase].values()))
    return name, sum(found[name].values())


def table(found: dict[str, Parts]) -> list[str]:
    """A line a part, a column a phase, in GiB; the last line is the sum."""
    gib = lambda number: f"{number / 2**30:>11.3f}" if number else f"{'':>11}"
    lines = [f"{'memory a device, GiB':24}" + "".join(f"{phase:>11}" for phase in found)]
    for part in PARTS:
        if any(parts.get(part) for parts in found.values()):
            lines.append(f"{part:24}" + "".join(gib(parts.get(part, 0)) for parts in found.values()))
    return [*lines, f"{'together':24}" + "".join(gib(sum(parts.values())) for parts in found.values())]
