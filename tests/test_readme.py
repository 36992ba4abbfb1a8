"""What the README shows works, and what it points to is there."""

import re
from pathlib import Path

import jax.numpy as jnp
import pytest

from jaxgrpo.problems import Completion, Problem
from jaxgrpo.rewards.workers.pool import Pool

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINKS = set(re.findall(r"\]\(([^)#]+)\)", README)) | set(
    re.findall(r"configs/\w+\.py", README)
)
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_losses_example_runs():
    (example,) = [block for block in BLOCKS if "batch_loss" in block]
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["value"] == pytest.approx(
        0.0, abs=1e-6
    )  # ratio 1, no KL, advantages that sum to nothing
    assert all(jnp.abs(leaf).max() > 0 for leaf in names["gradient"].values())


def test_the_reward_examples_run_in_workers(tmp_path, monkeypatch):
    (module,) = [block for block in BLOCKS if block.startswith("# my_rewards.py")]
    (config,) = [
        block for block in BLOCKS if block.startswith("# the config's rewards")
    ]
    (tmp_path / "my_rewards.py").write_text(module, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    names: dict = {}
    exec(compile(config, "README.md", "exec"), names)
    texts = ["Please, \\boxed{42}", "Please, \\boxed{42}", "The answer is \\boxed{41}"]
    completions = [
        Completion(text, tokens)
        for text, tokens in zip(texts, (50, 51, 9), strict=True)
    ]
    with Pool(names["rewards"], 1, deadline=30.0) as pool:
        first, second, third = pool.result(
            pool.submit(Problem("1", "6 * 7?", "42"), completions)
        )
    assert first == {
        "accuracy": 1.0,
        "language": 1.0,
        "polite": 1.0,
        "short": 1.0,
        "different": 0.5,
    }
    assert second == first | {"short": 0.0}
    assert third == {
        "accuracy": 0.0,
        "language": 0.0,
        "polite": 0.0,
        "short": 1.0,
        "different": 1.0,
    }


@pytest.mark.parametrize("block", BLOCKS)
def test_every_example_is_python(block):
    compile(block, "README.md", "exec")


@pytest.mark.parametrize("link", sorted(LINKS))
def test_every_link_leads_somewhere(link):
    assert link.startswith("https://") or (ROOT / link).exists()
