"""Saves and restores train states with Orbax, in OUT/checkpoints/STEP.

A checkpoint has two items: `state`, the arrays by their paths, and `host`, JSON values. Arrays are
saved as a flat {"params/layers/0/kernel": array}. So what is restored depends on names and shapes
alone, not on the classes that the optimizer's state is made of. Orbax writes to a folder with a
temporary name and renames it at the end: a save that was killed leaves no checkpoint. In a bucket,
which renames nothing, a file is written at the end that says that it is complete.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import PyTree

from jaxgrpo.distributed.mesh import named_leaves
from jaxgrpo.errors import UserError
from jaxgrpo.files import CHECKPOINTS, is_folder, is_remote


class Checkpoints:
    """The checkpoints of a run, under OUT/checkpoints.

    keep: how many of the newest are kept. None is for programs that only read: no folder is
        created, and no remains of a killed save are removed.
    keep_best: the score by which the best checkpoint is kept, too; "": none is
    flag: that names the run, for messages

    Every process of a run makes the same calls.
    """

    def __init__(
        self,
        out: str | os.PathLike,
        keep: int | None = None,
        keep_best: str = "",
        flag: str = "--config.out",
    ) -> None:
        self._flag = flag
        self._folder = _folder(out)
        self._manager: ocp.CheckpointManager | None = None
        # Orbax cannot open a folder that does not exist and that it may not create.
        if keep is not None or is_folder(self._folder):
            self._manager = _open_manager(self._folder, keep, keep_best)

    def save(
        self,
        step: int,
        state: PyTree,
        host_state: Mapping[str, object],
        scores: Mapping[str, float] | None = None,
    ) -> None:
        """Saves a checkpoint, and returns when it is complete.

        A step that has been saved already is left as it is.

        state: a pytree of jax arrays
        host_state: JSON values
        scores: of an evaluation of this step; None: there was none
        """
        manager = self._manager
        assert manager is not None, "give `keep` to save checkpoints"
        if step in manager.all_steps():
            return
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(named_leaves(state)),
            host=ocp.args.JsonSave(dict(host_state)),
        )
        # force: Orbax's own rule for which steps are saved does not apply.
        manager.save(step, args=items, metrics=dict(scores or {}), force=True)

    def steps(self) -> list[int]:
        """Returns the steps of all checkpoints, in order."""
        return sorted(self._manager.all_steps()) if self._manager else []

    def latest(self) -> int | None:
        """Returns the step of the newest checkpoint; None if there is none."""
        return self._manager.latest_step() if self._manager else None

    def restore(self, shapes: PyTree) -> tuple[PyTree, dict[str, Any]]:
        """Returns the state and the host state of the newest checkpoint, bit for bit.

        shapes: a jax.ShapeDtypeStruct for each array. Its sharding says where the array goes, and
            may be of another mesh than the one that saved; None: the default device.

        Raises UserError if there is no checkpoint, it is damaged, or it is one of another model or
        optimizer.
        """
        expected = named_leaves(shapes)
        step = self.newest()
        self._check(step, expected, is_exact=True)
        items = self._read(
            step, state=_restore_arguments(expected), host=ocp.args.JsonRestore()
        )
        return _unflatten(shapes, items["state"]), items["host"]

    def restore_params(self, shapes: PyTree, step: int | None = None) -> PyTree:
        """Returns only the parameters of a checkpoint.

        shapes: a jax.ShapeDtypeStruct for each parameter; they are cast to its dtype
        step: of the checkpoint; None: the newest

        Raises UserError as `restore` does.
        """
        state_shapes = {"params": shapes}
        expected = named_leaves(state_shapes)
        step = self.newest() if step is None else self._existing(step)
        self._check(step, expected, is_exact=False)
        items = self._read(step, state=_restore_arguments(expected))
        return _unflatten(state_shapes, items["state"])["params"]

    def close(self) -> None:
        """Closes Orbax's manager."""
        if self._manager:
            self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def newest(self) -> int:
        """Returns the step of the newest checkpoint. Raises UserError if there is none."""
        step = self.latest()
        if step is None:
            raise UserError(
                f"{self._folder}: there is no checkpoint; train first, "
                f"or give the {self._flag} that has one"
            )
        return step

    def _existing(self, step: int) -> int:
        """Returns the step. Raises UserError if it has no checkpoint."""
        steps = self._manager.all_steps() if self._manager else []
        if step not in steps:
            raise UserError(
                f"{self._folder}: there is no checkpoint of step {step}; choose one of "
                f"{', '.join(map(str, sorted(steps))) or 'none'}"
            )
        return step

    def _check(
        self, step: int, expected: Mapping[str, jax.ShapeDtypeStruct], is_exact: bool
    ) -> None:
        """Raises UserError for the first array in which a checkpoint is not as expected.

        expected: shapes and dtypes by path
        is_exact: dtypes must be equal, and the checkpoint may hold no other arrays
        """
        assert self._manager is not None
        try:
            saved = self._manager.item_metadata(step)["state"].tree
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise self._damaged(step, error) from error
        folder = self._folder / str(step)
        # Arrays that only the checkpoint has come last: a different shape says more.
        unexpected = sorted(saved.keys() - expected.keys()) if is_exact else []
        for path in [*expected, *unexpected]:
            in_checkpoint = _describe(saved.get(path), is_exact)
            in_run = _describe(expected.get(path), is_exact)
            if in_checkpoint != in_run:
                hint = (
                    f"another model or optimizer made it; give another {self._flag}, "
                    "or the settings it was made with"
                )
                raise UserError(
                    f"{folder}: {path} is {in_checkpoint} in the checkpoint and {in_run} "
                    f"in this run: {hint}"
                )

    def _read(self, step: int, **items: ocp.args.CheckpointArgs) -> Mapping[str, Any]:
        """Returns items of a checkpoint by name. Raises UserError if it is damaged."""
        assert self._manager is not None
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except (OSError, ValueError, KeyError) as error:
            raise self._damaged(step, error) from error

    def _damaged(self, step: int, error: Exception) -> UserError:
        """Returns the error for a checkpoint that Orbax cannot read."""
        assert self._manager is not None
        older_steps = [other for other in self._manager.all_steps() if other < step]
        if older_steps:
            hint = f"remove that folder to go on from step {max(older_steps)}"
        else:
            hint = "remove that folder to begin again"
        # Orbax's messages can have many lines; ours must be one.
        first_line = (str(error).splitlines() or [""])[0]
        reason = f"{type(error).__name__}: {first_line[:200]}"
        return UserError(
            f"{self._folder / str(step)}: the checkpoint is damaged ({reason}); {hint}"
        )


def saved_steps(out: str | os.PathLike) -> list[int] | None:
    """Returns the steps of a run's checkpoints, in order; None if it has no folder for them.

    Unlike `Checkpoints.steps` it opens no device: the run may not have divided a CPU yet.
    """
    folder = _folder(out)
    if not is_folder(folder):
        return None
    # A save that is not complete has another name or, in a bucket, no file that says so.
    saved = [path for path in folder.glob("*") if path.name.isdecimal()]
    complete = [path for path in saved if ocp.utils.is_checkpoint_finalized(path)]
    return sorted(int(path.name) for path in complete)


def _folder(out: str | os.PathLike) -> epath.Path:
    """Returns the folder of a run's checkpoints."""
    return epath.Path(out if is_remote(out) else Path(out).absolute()) / CHECKPOINTS


def _open_manager(
    folder: epath.Path, keep: int | None, keep_best: str
) -> ocp.CheckpointManager:
    """Returns Orbax's manager of a folder. keep, keep_best: as Checkpoints has them."""

    def best(scores: Mapping[str, float]) -> float:
        # A step that was not evaluated is no better than any.
        return scores.get(keep_best, -math.inf)

    kept = [ocp.checkpoint_managers.LatestN(keep)]
    if keep_best:
        kept.append(
            ocp.checkpoint_managers.BestN(
                get_metric_fn=best, n=1, keep_checkpoints_without_metrics=False
            )
        )
    can_write = keep is not None
    arrays_handler = ocp.PyTreeCheckpointHandler()
    json_handler = ocp.JsonCheckpointHandler()
    handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
    handlers.add("state", ocp.args.PyTreeSave, arrays_handler)
    handlers.add("state", ocp.args.PyTreeRestore, arrays_handler)
    handlers.add("host", ocp.args.JsonSave, json_handler)
    handlers.add("host", ocp.args.JsonRestore, json_handler)
    # Whoever only reads must not remove a save that a running program has not finished yet.
    options = ocp.CheckpointManagerOptions(
        create=can_write,
        cleanup_tmp_directories=can_write,
        preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(kept)
        if can_write
        else None,
        # Without it Orbax does not write scores, which a run that goes on has to know.
        best_fn=best if keep_best else None,
        enable_async_checkpointing=False,  # `save` returns when the checkpoint is complete
    )
    return ocp.CheckpointManager(folder, options=options, handler_registry=handlers)


def _unflatten(shapes: PyTree, leaves: Mapping[str, jax.Array]) -> PyTree:
    """Returns a tree of the structure of `shapes` with the leaves that have its paths."""
    ordered_leaves = [leaves[path] for path in named_leaves(shapes)]
    return jax.tree.unflatten(jax.tree.structure(shapes), ordered_leaves)


def _restore_arguments(
    expected: Mapping[str, jax.ShapeDtypeStruct],
) -> ocp.args.PyTreeRestore:
    """Returns Orbax's arguments to read the arrays of these paths, and no others."""
    default_sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    targets = {}
    for path, leaf in expected.items():
        sharding = leaf.sharding or default_sharding
        targets[path] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    # partial_restore: arrays of other paths, such as the optimizer's, are not read.
    array_arguments = ocp.checkpoint_utils.construct_restore_args(targets)
    return ocp.args.PyTreeRestore(
        targets, restore_args=array_arguments, partial_restore=True
    )


def _describe(array: Any, with_dtype: bool) -> str:
    """Returns `float32[128,512]`, or `[128,512]` without the dtype; `missing` for None.

    array: anything with a shape and a dtype
    """
    if array is None:
        return "missing"
    dtype = str(array.dtype) if with_dtype else ""
    sizes = ",".join(str(size) for size in array.shape)
    return f"{dtype}[{sizes}]"
