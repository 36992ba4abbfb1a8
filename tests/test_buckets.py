"""What is in a bucket is read and written as a folder is, and a run goes on from there."""

import json
import os
import re
import shutil
from contextlib import contextmanager
from dataclasses import replace

import fsspec
import jax
import numpy as np
import pytest

from jaxgrpo import buckets, evaluate, export, files, language_model
from jaxgrpo.buckets import SCHEME
from jaxgrpo.checkpoint import Checkpoints, saved_steps
from jaxgrpo.config.command_line import run_main
from jaxgrpo.data.arithmetic import Arithmetic
from jaxgrpo.data.table import Table
from jaxgrpo.errors import UserError
from jaxgrpo.models import hf_folder
from jaxgrpo.models.tensors import find_tensors
from jaxgrpo.policies import find_policies
from jaxgrpo.run_state import check_start
from jaxgrpo.train import train
from tests.buckets import BUCKET, serve_bucket
from tests.tiny_runs import (
    ROOT,
    comparable,
    lines,
    make_config,
    model_folder,
    share_programs,
)
from tools import show
from tools.report import __main__ as report

OUT = f"{BUCKET}/runs/tiny"
MODEL = f"{BUCKET}/models/tiny"
DATA = f"{BUCKET}/data"


@pytest.fixture(scope="module", autouse=True)
def bucket():
    with serve_bucket():
        yield


@contextmanager
def other_machine(folder):
    """Has what follows happen on a machine that has copies of nothing."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        monkeypatch.setattr(files, "_runs", {})
        share_programs(monkeypatch, draws_plot=True)
        yield


@pytest.fixture(autouse=True)
def own_machine(tmp_path):
    with other_machine(tmp_path):
        yield


def write_problems(path):
    problems = Arithmetic(levels=(1,), size=40).train()
    rows = [{"question": one.prompt, "answer": one.answer} for one in problems]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def config_of(folder, model, data, out):
    config = make_config(folder, "evaluation.every=2")
    config.model = str(model)
    config.data = Table(path=f"{data}/train.jsonl", heldout_size=8)
    config.out = str(out)
    return config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Returns the config of a run here, and of the same in a bucket, which two machines made."""
    folder = tmp_path_factory.mktemp("runs")
    write_problems(folder / "train.jsonl")
    here = config_of(folder, model_folder(), folder, folder / "out")
    there = config_of(folder, MODEL, DATA, OUT)
    with other_machine(folder / "here"):
        list(train(here))
    with other_machine(folder / "first"):
        with files.written_folder(DATA) as data:
            data.mkdir()
            shutil.copy(folder / "train.jsonl", data)
        with files.written_folder(MODEL) as model:
            shutil.copytree(model_folder(), model)
        steps = train(there)
        next(steps)
        steps.close()
    with other_machine(folder / "second"):
        list(train(there))
    return here, there


# --- runs ---


def test_a_run_in_a_bucket_is_the_run_in_a_folder(runs):
    here, there = runs
    copy = files.run_folder(there.out)
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        mine, other = (
            comparable(lines(out / name)) for out in (files.run_folder(here.out), copy)
        )
        assert mine == other
    summaries = [
        json.loads((files.run_folder(c.out) / "summary.json").read_text()) for c in runs
    ]
    assert [summary.pop("seconds") > 0 for summary in summaries] == [True, True]
    assert summaries[0] == summaries[1]
    picture = files.fetched_file(OUT, "metrics.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    # Two machines wrote a file each.
    assert len(list(files.fetched(f"{OUT}/tensorboard").iterdir())) == 2
    # A machine that goes on has what it reads, and neither checkpoints nor pictures.
    names = {path.relative_to(copy).as_posix() for path in copy.rglob("*")}
    assert names >= {"config.json", "before.json", "evaluations/2.json"}
    assert not names & {"checkpoints", "tensorboard", "metrics.png"}


def test_every_checkpoint_of_a_bucket_is_that_of_the_folder(runs, tmp_path):
    here, there = runs
    assert saved_steps(there.out) == saved_steps(here.out) == [3, 4]
    for step in (3, 4):
        exported = []
        for name, config in (("here", here), ("there", there)):
            assert (
                export.export(config.out, tmp_path / name / str(step), step=step)[0]
                == step
            )
            exported.append(hf_folder.load_params(tmp_path / name / str(step)))
        jax.tree.map(np.testing.assert_array_equal, *exported)
        loaded = language_model.LanguageModel.load(there.out, step)
        assert loaded.step == step
        jax.tree.map(np.testing.assert_array_equal, loaded.params, exported[0])
    with pytest.raises(UserError, match=r"no checkpoint of step 1; choose one of 3, 4"):
        export.export(there.out, tmp_path / "none", step=1)
    # A save that is not complete is none.
    address = f"{there.out}/checkpoints/4/commit_success.txt"
    copy = files.fetched(address)
    buckets.remove(address)
    assert saved_steps(there.out) == [3]
    assert Checkpoints(there.out).latest() == 3
    buckets.put(copy, address)
    assert saved_steps(there.out) == [3, 4]


def test_what_looks_at_runs_looks_into_buckets(runs, capsys):
    _, there = runs
    report.main([there.out])
    assert capsys.readouterr().out.startswith(f"{OUT}/report.html: ")
    assert files.fetched_file(OUT, "report.html").stat().st_size > 100_000
    show.main([OUT, "--step", "3"])
    assert "step 3" in capsys.readouterr().out
    (evaluation,) = evaluate.evaluate_all(there)
    assert evaluation["of"] == f"{OUT}, step {evaluation['step']}"
    named = replace(there.evaluation, policies=(f"{OUT}/checkpoints/3", OUT, MODEL))
    policies = find_policies(replace(there, evaluation=named))
    assert [(policy.out, policy.step) for policy in policies] == [
        (OUT, 3),
        (OUT, 4),
        (None, None),
    ]
    check_start(replace(there, out=f"{BUCKET}/further", init_from=OUT))
    # Nothing is sampled twice, on whatever machine.
    before = files.fetched_file(OUT, "evaluation.jsonl").read_bytes()
    files._runs.clear()
    assert evaluate.evaluate_all(there) == [evaluation]
    assert files.fetched_file(OUT, "evaluation.jsonl").read_bytes() == before


# --- models and data ---


def test_a_model_that_is_exported_to_a_bucket_is_read_from_there(runs):
    here, _ = runs
    target = f"{BUCKET}/exported"
    export.export(here.out, target)
    copy = files.fetched(target, deep=False)
    assert copy == files.cache_folder("gs") / "bucket" / "exported"
    assert find_tensors(copy)
    with pytest.raises(UserError, match=f"{target} is there already"):
        export.export(here.out, target)


def test_a_copy_follows_the_bucket():
    folder = files.run_folder(f"{BUCKET}/data-that-changes")
    for name in ("a.jsonl", "b.jsonl", "weights.bin"):
        files.write_atomically(folder / name, b"1")
    copy = files.fetched(f"{BUCKET}/data-that-changes")
    assert sorted(os.listdir(copy)) == ["a.jsonl", "b.jsonl"]
    (copy / "c.jsonl.7.partial").touch()  # another process is fetching it
    files.write_atomically(folder / "a.jsonl", b"2")
    files.remove(folder / "b.jsonl")
    assert files.fetched(f"{BUCKET}/data-that-changes/") == copy
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == {
        "a.jsonl": b"2",
        "c.jsonl.7.partial": b"",
    }


def test_what_is_written_whole_is_in_the_bucket_at_once():
    out = f"{BUCKET}/whole"
    path = files.run_folder(out) / "summary.json"
    files.write_json(path, {"steps": 2})
    assert files.fetched_file(out, "summary.json").read_bytes() == path.read_bytes()
    files.remove(path)
    assert not files.fetched_file(out, "summary.json").exists()


def test_what_grows_is_in_the_bucket_when_it_is_uploaded(tmp_path):
    out = f"{BUCKET}/grows"
    folder = files.run_folder(out)
    path = folder / "evaluations" / "1.jsonl"
    path.parent.mkdir()
    for line in ("one\n", "two\n"):
        with path.open("a") as file:
            file.write(line)
        files.upload(folder)
    with other_machine(tmp_path / "other"):
        copy = files.run_folder(out)
        assert (copy / "evaluations" / "1.jsonl").read_text() == "one\ntwo\n"
        (copy / "evaluations" / "1.jsonl").write_text("other\n")
        files.upload(copy)
    assert path.read_text() == "one\ntwo\n"
    files.run_folder(out, again=True)
    assert path.read_text() == "other\n"


def test_what_takes_long_to_fetch_is_said(monkeypatch, capsys):
    files.write_atomically(files.run_folder(f"{BUCKET}/large") / "a.jsonl", b"1234")
    files.fetched(f"{BUCKET}/large")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(buckets, "SAID_BYTES", 4)
    files.write_atomically(files.run_folder(f"{BUCKET}/large") / "a.jsonl", b"5678")
    copy = files.fetched(f"{BUCKET}/large")
    said = f"fetching 1 files, 0.0 GB, of {BUCKET}/large to {copy}\n"
    assert capsys.readouterr().err == said


def test_no_setting_is_taken_for_a_path_of_this_machine():
    """The functions of `files` know both kinds of paths."""
    pattern = r"\bPath\((\w+\.)*config\.(out|model|reference|init_from)\)"
    for path in (ROOT / "jaxgrpo").rglob("*.py"):
        found = re.search(pattern, path.read_text("utf-8"))
        assert found is None, f"{path}: {found and found[0]}; see jaxgrpo/files.py"


# --- what is wrong ---


def test_an_error_names_the_address_and_not_the_copy(capsys):
    folder = files.run_folder(f"{BUCKET}/run")

    def fail(arguments):
        raise UserError(f"{folder}/metrics.jsonl is empty")

    with pytest.raises(SystemExit):
        run_main(fail)
    assert capsys.readouterr().err == f"error: {BUCKET}/run/metrics.jsonl is empty\n"


@pytest.mark.parametrize("setting", ["model", "out", "data"])
def test_without_its_library_a_bucket_is_refused_with_the_line_that_installs_it(
    setting, tmp_path, monkeypatch
):
    found = buckets.importlib.util.find_spec
    monkeypatch.setattr(
        buckets.importlib.util,
        "find_spec",
        lambda name: None if name == "gcsfs" else found(name),
    )
    write_problems(tmp_path / "train.jsonl")
    paths = {"model": str(model_folder()), "data": tmp_path, "out": tmp_path / "out"}
    config = config_of(tmp_path, **paths | {setting: f"{BUCKET}/here"})
    with pytest.raises(UserError, match=r"needs gcsfs: pip install 'jaxgrpo\[gcs\]'"):
        next(train(config))


def test_no_copy_lies_outside_of_its_folder(monkeypatch):
    files.write_atomically(files.run_folder(f"{BUCKET}/names") / "good", b"1")
    bucket = fsspec.filesystem("gs")
    found = bucket.find(f"{BUCKET}/names", detail=True)
    (good,) = found.values()
    for name in ("bucket/names/../../../bad", "bucket/names/folder/"):
        found[name] = good | {"name": name}
    monkeypatch.setattr(bucket, "find", lambda address, detail: found)
    assert [*buckets.versions(f"{BUCKET}/names")] == ["good"]


def test_what_cannot_be_reached_is_named(monkeypatch):
    def refuse(protocol):
        raise OSError("Anonymous caller has no storage.objects.list access")

    monkeypatch.setattr(fsspec, "filesystem", refuse)
    with pytest.raises(
        UserError, match="gcloud auth application-default login"
    ) as caught:
        files.fetched(f"{BUCKET}/model")
    assert f"{BUCKET}/model cannot be reached (OSError: Anonymous" in str(caught.value)


def test_nothing_at_an_address_and_other_addresses_are_refused():
    with pytest.raises(UserError, match=f"there is nothing at {BUCKET}/nowhere: check"):
        files.fetched(f"{BUCKET}/nowhere/")
    with pytest.raises(UserError, match=f"{SCHEME}BUCKET/NAME"):
        files.fetched("s3://bucket/model")
