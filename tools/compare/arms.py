"""The arms of each comparison: names and configs."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from jaxgrpo import config as configs
from jaxgrpo.config import Config, Filter
from jaxgrpo.losses import CISPO, DAPO, GRPO, GSPO, DrGRPO, MaxRL, Objective

QUICKSTART = "configs/quickstart.py"
DISTILLATION = "configs/distill_tiny.py"
TEACHER = "teacher"
"""The folder of the teacher's model, beside the runs."""


@dataclass(frozen=True)
class Arm:
    """Settings under a name.

    name: a line of the table
    config: of its runs, but for seed and out
    """

    name: str
    config: Config

    @property
    def folder(self) -> str:
        """The name as part of a path."""
        return self.name.lower().replace(",", "").replace(".", "").replace(" ", "_")


def objective_arms(out: Path) -> list[Arm]:
    """Returns the quickstart with each objective, with one update of a batch and with four."""
    quickstart = configs.load(QUICKSTART, [])
    budget = float(quickstart.sampling.max_new_tokens)
    # Each with its own defaults, which are its paper's.
    objectives: dict[str, Objective] = {
        "GRPO": GRPO(),
        "Dr. GRPO": DrGRPO(budget=budget),
        "DAPO": DAPO(),
        "GSPO": GSPO(),
        "CISPO": CISPO(),
        "MaxRL": MaxRL(),
    }
    arms = []
    for updates, words in ((1, "1 update"), (4, "4 updates")):
        batch = replace(quickstart.batch, updates=updates)
        for name, objective in objectives.items():
            config = replace(quickstart, objective=objective, batch=batch)
            arms.append(Arm(f"{name}, {words}", config))
    return arms


def in_flight_arms(out: Path) -> list[Arm]:
    """Returns the quickstart with and without completions that go on under the next policy."""
    quickstart = configs.load(QUICKSTART, [])
    sampling = replace(quickstart.sampling, keep_in_flight=True)
    return [
        Arm("on policy", quickstart),
        Arm("in flight", replace(quickstart, sampling=sampling)),
    ]


def distillation_arms(out: Path) -> list[Arm]:
    """Returns GRPO, filtered and not, and distillation of the teacher in the folder `out`."""
    quickstart = configs.load(QUICKSTART, [])
    distillation = configs.load(DISTILLATION, [])
    distillation = replace(distillation, reference=str(out / TEACHER))
    return [
        Arm("GRPO", quickstart),
        Arm("GRPO, no filter", replace(quickstart, filter=Filter(rule="off"))),
        Arm("distilled", distillation),
    ]


COMPARISONS: dict[str, Callable[[Path], list[Arm]]] = {
    "objectives": objective_arms,
    "in_flight": in_flight_arms,
    "distillation": distillation_arms,
}
"""What can be compared: name -> the arms, given the folder of the runs."""
