"""What the README shows works, and what it points to is there."""

import re
from pathlib import Path

import jax.numpy as jnp
import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINKS = set(re.findall(r"\]\(([^)#]+)\)", README)) | set(re.findall(r"configs/\w+\.py", README))
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_losses_example_runs():
    (example,) = [block for block in BLOCKS if "batch_loss" in block]
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["value"] == pytest.approx(0.0, abs=1e-6)  # ratio 1, no KL, advantages that sum to nothing
    assert all(jnp.abs(leaf).max() > 0 for leaf in names["gradient"].values())


@pytest.mark.parametrize("block", BLOCKS)
def test_every_example_is_python(block):
    compile(block, "README.md", "exec")


@pytest.mark.parametrize("link", sorted(LINKS))
def test_every_link_leads_somewhere(link):
    assert link.startswith("https://") or (ROOT / link).exists()
