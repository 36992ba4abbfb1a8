"""Runs arms with seeds, each run in a process of its own, several side by side."""

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue

from jaxgrpo import config as configs
from jaxgrpo.config import Config
from jaxgrpo.errors import UserError
from jaxgrpo.train import train
from tools.compare.arms import COMPARISONS, Arm


@dataclass(frozen=True)
class Task:
    """A run to be made.

    comparison: its name in COMPARISONS
    arm: of the comparison
    seed: of the run
    parent: the folder of the comparison's runs
    """

    comparison: str
    arm: Arm
    seed: int
    parent: Path

    @property
    def folder(self) -> Path:
        """The run's own folder."""
        return self.parent / self.arm.folder / str(self.seed)

    @property
    def is_done(self) -> bool:
        """True once the run has been evaluated after its last step.

        Raises UserError if it was made with other settings.
        """
        configs.check_same(self.config, str(self.folder))
        return (self.folder / "summary.json").exists()

    @property
    def config(self) -> Config:
        """The arm's config with this run's seed and folder."""
        return replace(self.arm.config, seed=self.seed, out=str(self.folder))


def make_tasks(comparison: str, seeds: Sequence[int], out: Path) -> list[Task]:
    """Returns the runs of a comparison: all arms with the first seed, then with the next."""
    arms = COMPARISONS[comparison](out)
    return [
        Task(comparison, arm, seed, out) for seed, arm in itertools.product(seeds, arms)
    ]


def run_all(
    tasks: Sequence[Task], at_once: int, log: Callable[[str], None]
) -> Iterator[Task]:
    """Makes the runs that are not done, and yields each as it ends.

    at_once: runs side by side, which divide the cores
    log: takes a line after each

    Raises UserError if a run fails; what it printed is in its folder's log.txt.
    """
    missing = [task for task in tasks if not task.is_done]
    # Threads wait for processes. Each takes cores of its own, since two programs that both take all
    # of them slow each other down.
    started = time.monotonic()
    free_cores: SimpleQueue[list[int]] = SimpleQueue()
    for cores in _divide_cores(at_once):
        free_cores.put(cores)
    pool = ThreadPoolExecutor(at_once)
    try:
        futures = {pool.submit(_run, task, free_cores): task for task in missing}
        for count, future in enumerate(as_completed(futures), start=1):
            task = futures[future]
            if future.result():
                raise UserError(
                    f"{task.arm.name}, seed {task.seed} failed; see {task.folder}/log.txt"
                )
            left = (time.monotonic() - started) / count * (len(missing) - count)
            log(
                f"{count} of {len(missing)} runs: {task.arm.name}, seed {task.seed}; "
                f"eta {left / 60:.0f} min"
            )
            yield task
    finally:
        # Whatever ends it, no further run begins.
        pool.shutdown(cancel_futures=True)


def _divide_cores(parts: int) -> list[list[int]]:
    """Returns the cores of each part; one core can be in several if there are too few."""
    cores = list(range(os.cpu_count() or 1))
    if hasattr(os, "sched_getaffinity"):
        cores = sorted(os.sched_getaffinity(0))
    return [cores[part::parts] or cores for part in range(parts)]


def _run(task: Task, free_cores: "SimpleQueue[list[int]]") -> int:
    """Makes a run in a process on cores that are free; returns its exit code."""
    task.folder.mkdir(parents=True, exist_ok=True)
    cores = free_cores.get()
    command = [sys.executable, "-m", "tools.compare.runs", task.comparison]
    command += [task.arm.folder, str(task.seed), str(task.parent)]
    command += [",".join(map(str, cores))]
    # Runs of an arm share their compiled programs.
    environment = dict(os.environ)
    environment["JAX_COMPILATION_CACHE_DIR"] = str(task.parent / "compiled")
    try:
        with (task.folder / "log.txt").open("w") as log:
            process = subprocess.run(command, env=environment, stdout=log, stderr=log)
        return process.returncode
    finally:
        free_cores.put(cores)


def main(argv: list[str]) -> None:
    """Makes one run: COMPARISON ARM SEED PARENT CORES."""
    comparison, arm_folder, seed, parent, cores = argv
    # Before JAX counts them; Linux alone has this.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [int(core) for core in cores.split(",")])
    tasks = make_tasks(comparison, [int(seed)], Path(parent))
    task = next(task for task in tasks if task.arm.folder == arm_folder)
    for metrics in train(task.config):
        print(metrics["step"], metrics["reward/accuracy"], flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
