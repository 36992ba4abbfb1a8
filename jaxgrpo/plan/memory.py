"""What lives beside each other on a device in each phase of a run, by part."""

from jaxgrpo.config import Config
from jaxgrpo.distributed.mesh import device_bytes
from jaxgrpo.plan.compiled import Arguments, Compiled, result

Parts = dict[str, float]
"""Bytes by part; a phase's parts sum to what it needs."""

PARTS = (
    *(
        "as loaded",
        "parameters",
        "optimizer",
        "reference",
        "published copy",
        "slots (KV cache)",
        "slots, made anew",
    ),
    *("prompts read", "batch", "padding to tiles", "results", "temporaries", "programs"),
)


def phases(config: Config, given: Arguments, compiled: dict[str, Compiled]) -> dict[str, Parts]:
    """Each phase's parts; temporaries and results of the programs that are given.

    A run holds its policy's state and the reference all the time; from a step's first prompt to its last completion also the
    copy that is sampled from, the slots and the prompts read last. Where slots are made anew (a longer ring, fewer rows), the
    old are there until the new are. With sampling.keep_in_flight all of these stay through the update.
    At the start, the parameters as they are loaded are there beside the state and the reference made of them.
    """
    steps = given.steps
    state = {
        "parameters": device_bytes(steps.state_like.params),
        "optimizer": device_bytes((steps.state_like.step, steps.state_like.opt_state)),
        "reference": device_bytes(given.reference),
        "programs": sum(program.code for program in compiled.values()),
    }
    more = {
        name: max(0.0, program.arguments - program.shapes) for name, program in compiled.items()
    }
    tiles = more.get("update", 0.0)
    sampled = max(more.get("decode", 0.0), more.get("insert", 0.0))
    sampling = {
        "published copy": device_bytes(given.published),
        "slots (KV cache)": device_bytes(given.slots),
        "prompts read": device_bytes(given.prefilled),
        "padding to tiles": tiles + sampled,
    }
    kept = sampling if config.sampling.keep_in_flight else {}
    lives = {
        "start": {"as loaded": device_bytes(steps.params_like), "padding to tiles": tiles},
        "prefill": sampling,
        "insert": sampling,
        "decode": sampling,
        "new slots": sampling | _made_anew(given) | {"padding to tiles": tiles + 2 * sampled},
        "update": {"padding to tiles": tiles} | kept | {"batch": device_bytes(given.batch)},
    }
    return {name: state | arrays | _own(compiled.get(name)) for name, arrays in lives.items()}


def _own(program: Compiled | None) -> Parts:
    return {"results": program.unaliased, "temporaries": program.temporaries} if program else {}


def _made_anew(given: Arguments) -> Parts:
    """Slots before and after the change of theirs that takes the most together."""
    steps, pairs = given.steps, [(device_bytes(given.slots), 0)]
    slots = lambda size, ring: device_bytes(result(steps.empty, size, ring))
    if len(steps.rings) > 1:
        pairs.append((slots(steps.sizes[0], steps.rings[-2]), pairs[0][0]))
    if len(steps.sizes) > 1:
        pairs.append((pairs[0][0], slots(steps.sizes[1], steps.rings[-1])))
    return dict(zip(("slots (KV cache)", "slots, made anew"), max(pairs, key=sum), strict=True))


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
            lines.append(
                f"{part:24}" + "".join(gib(parts.get(part, 0)) for parts in found.values())
            )
    return [
        *lines,
        f"{'together':24}" + "".join(gib(sum(parts.values())) for parts in found.values()),
    ]
