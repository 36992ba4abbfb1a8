"""TrainState and host state through Orbax: OUT/checkpoints/STEP holds `state`, arrays by path, and `host`, JSON.

Arrays are saved as one flat {"params/layers/0/kernel": array}: what is read back depends on names and shapes alone, not
on the classes that the optimizer's state is made of. Orbax writes to a folder with a temporary name and renames it when
it is whole: a save that was killed is not there.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxgrpo.errors import UserError


class Checkpoints:
    """The checkpoints of a run, under OUT/checkpoints.

    keep: how many of the newest are kept. None is for programs that only read: nothing is created or tidied away.
    Every process of a run makes the same calls.
    """

    def __init__(self, out: str | os.PathLike, keep: int | None = None) -> None:
        self._folder = Path(out).absolute() / "checkpoints"
        self._manager: Any = (
            None if keep is None and not self._folder.is_dir() else _manager(self._folder, keep)
        )

    def save(self, step: int, state: Any, host: Mapping[str, Any]) -> None:
        """Writes a checkpoint and returns when it is whole. A step that is there already stays as it is.

        state: a pytree of jax arrays; host: JSON values.
        """
        if step in self._manager.all_steps():
            return
        items = {"state": ocp.args.PyTreeSave(_flat(state)), "host": ocp.args.JsonSave(dict(host))}
        self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def latest(self) -> int | None:
        """The newest checkpoint's step."""
        return self._manager.latest_step() if self._manager else None

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]]:
        """The newest checkpoint's (state, host), bit for bit, each array in the sharding that `like` gives it.

        like: a pytree of jax.ShapeDtypeStruct; its mesh may be another than the one that saved, and a leaf without a
        sharding goes to the default device. Raises UserError if there is no checkpoint, it is damaged, or it is another
        model's or optimizer's.
        """
        wanted = _flat(like)
        step = self._newest()
        self._check(step, wanted, exactly=True)
        items = self._read(step, state=_restore(wanted), host=ocp.args.JsonRestore())
        return _unflat(like, items["state"]), items["host"]

    def restore_params(self, like: Any) -> Any:
        """The newest checkpoint's parameters alone, in the shardings and dtypes of `like`. Raises as `restore`."""
        wanted = _flat({"params": like})
        step = self._newest()
        self._check(step, wanted, exactly=False)
        return _unflat({"params": like}, self._read(step, state=_restore(wanted))["state"])[
            "params"
        ]

    def close(self) -> None:
        if self._manager:
            self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _newest(self) -> int:
        step = self.latest()
        if step is None:
            raise UserError(
                f"{self._folder}: there is no checkpoint; train first, or give the --config.out that has one"
            )
        return step

    def _check(self, step: int, wanted: Mapping[str, jax.ShapeDtypeStruct], exactly: bool) -> None:
        """Raises UserError for the first array, by path, in which a checkpoint differs from what is wanted.

        exactly: dtypes count, and nothing may be saved that is not wanted.
        """
        try:
            saved = self._manager.item_metadata(step)["state"].tree
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise self._damaged(step, error) from error
        folder = self._folder / str(step)
        unwanted = sorted(saved.keys() - wanted.keys()) if exactly else []
        for path in [*wanted, *unwanted]:
            here, there = _text(saved.get(path), exactly), _text(wanted.get(path), exactly)
            if here != there:
                mend = "another model or optimizer made it; give another --config.out, or the settings it was made with"
                raise UserError(
                    f"{folder}: {path} is {here} in the checkpoint and {there} in this run: {mend}"
                )

    def _read(self, step: int, **items: ocp.args.CheckpointArgs) -> Mapping[str, Any]:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except (OSError, ValueError, KeyError) as error:
            raise self._damaged(step, error) from error

    def _damaged(self, step: int, error: Exception) -> UserError:
        older = [other for other in self._manager.all_steps() if other < step]
        mend = (
            f"remove that folder to go on from step {max(older)}"
            if older
            else "remove that folder to begin again"
        )
        what = (str(error).splitlines() or [""])[0][:200]
        return UserError(
            f"{self._folder / str(step)}: the checkpoint is damaged ({type(error).__name__}: {what}); {mend}"
        )


def _manager(folder: Path, keep: int | None) -> ocp.CheckpointManager:
    handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for item, handler, arguments in (
        ("state", ocp.PyTreeCheckpointHandler(), (ocp.args.PyTreeSave, ocp.args.PyTreeRestore)),
        ("host", ocp.JsonCheckpointHandler(), (ocp.args.JsonSave, ocp.args.JsonRestore)),
    ):
        for argument in arguments:
            handlers.add(item, argument, handler)
    options = ocp.CheckpointManagerOptions(
        create=keep is not None,
        cleanup_tmp_directories=keep is not None,
        preservation_policy=ocp.checkpoint_managers.LatestN(keep) if keep is not None else None,
        enable_async_checkpointing=False,
    )
    return ocp.CheckpointManager(folder, options=options, handler_registry=handlers)


def _flat(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _unflat(like: Any, leaves: Mapping[str, Any]) -> Any:
    return jax.tree.unflatten(jax.tree.structure(like), [leaves[path] for path in _flat(like)])


def _restore(wanted: Mapping[str, jax.ShapeDtypeStruct]) -> ocp.args.PyTreeRestore:
    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    targets = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or default)
        for path, leaf in wanted.items()
    }
    arguments = ocp.checkpoint_utils.construct_restore_args(targets)
    return ocp.args.PyTreeRestore(targets, restore_args=arguments, partial_restore=True)


def _text(array: Any, exactly: bool) -> str:
    """`float32[128,512]`, or `[128,512]` where the dtype does not count."""
    if array is None:
        return "missing"
    return (str(array.dtype) if exactly else "") + "[" + ",".join(map(str, array.shape)) + "]"
