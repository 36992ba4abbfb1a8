"""The arms of each comparison: names and configs."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from jaxgrpo import config as configs
from jaxgrpo.config import Config, Filter
from jaxgrpo.errors import UserError
from jaxgrpo.losses import CISPO, DAPO, GRPO, GSPO, Corrected, DrGRPO, MaxRL, Objective

QUICKSTART = "configs/quickstart.py"
DISTILLATION = "configs/distill_tiny.py"
TEACHERS = {
    "supervised": (
        "python -m tools.make_tiny_model --start jaxgrpo/tiny --steps 600 --seed 1 "
        "--shortcuts 0 --out {}"
    ),
    "GRPO": (
        "python -m jaxgrpo.train --config configs/quickstart.py --config.steps=84 "
        "--config.batch.updates=1 --config.optimizer.learning_rate=1e-4 "
        "--config.optimizer.warmup_steps=4 --config.out=out/teacher && "
        "jaxgrpo export --run out/teacher --to {}"
    ),
}
"""Commands that make teachers, models better than the embedded one; the folder is left out."""


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


def base_config() -> Config:
    """Returns the quickstart with one update of each batch, and as many steps as arms are given."""
    changes = {
        "steps": 28,
        "batch.updates": 1,
        "optimizer.learning_rate": 1e-4,
        "optimizer.warmup_steps": 4,
    }
    return configs.load(
        QUICKSTART, [f"--config.{name}={value}" for name, value in changes.items()]
    )


def objective_arms(folder: Path) -> list[Arm]:
    """Returns the base with each objective, with one update of a batch and with four."""
    base = base_config()
    budget = float(base.sampling.max_new_tokens)
    # Each with its own defaults.
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
        batch = replace(base.batch, updates=updates)
        for name, objective in objectives.items():
            config = replace(base, objective=objective, batch=batch)
            arms.append(Arm(f"{name}, {words}", config))
    return arms


def in_flight_arms(folder: Path) -> list[Arm]:
    """Returns the base, and it with completions that go on under the next policy."""
    base = base_config()
    sampling = replace(base.sampling, keep_in_flight=True)
    return [
        Arm("on policy", base),
        Arm("in flight", replace(base, sampling=sampling)),
    ]


def int8_arms(folder: Path) -> list[Arm]:
    """Returns the base with Corrected, sampled from matrices in its dtype and in int8."""
    base = base_config()
    corrected = replace(
        base,
        objective=Corrected(base.objective),
        batch=replace(base.batch, old_logprobs="trainer"),
    )
    sampling = replace(base.sampling, weights="int8")
    return [
        Arm("float32", corrected),
        Arm("int8", replace(corrected, sampling=sampling)),
    ]


def distillation_arms(folder: Path) -> list[Arm]:
    """Returns GRPO, filtered and not, and distillation of each teacher."""
    base = base_config()
    distillation = configs.load(DISTILLATION, [])
    arms = [
        Arm("GRPO", base),
        Arm("GRPO, no filter", replace(base, filter=Filter(rule="off"))),
    ]
    for name in TEACHERS:
        config = replace(distillation, reference=str(teacher_folder(folder, name)))
        arms.append(Arm(f"distilled, {name} teacher", config))
    return arms


def teacher_folder(folder: Path, name: str) -> Path:
    """Returns where a teacher's model is, beside the runs."""
    return folder / f"teacher_{name.lower()}"


COMPARISONS: dict[str, Callable[[Path], list[Arm]]] = {
    "objectives": objective_arms,
    "in_flight": in_flight_arms,
    "int8": int8_arms,
    "distillation": distillation_arms,
}
"""Comparisons by name: each returns its arms, given the folder of the runs."""


def check_ready(comparison: str, folder: Path) -> None:
    """Raises UserError if a comparison needs a model that is not there."""
    if comparison != "distillation":
        return
    for name, command in TEACHERS.items():
        teacher = teacher_folder(folder, name)
        if not teacher.is_dir():
            raise UserError(
                f"there is no teacher in {teacher}: make it by {command.format(teacher)}"
            )
