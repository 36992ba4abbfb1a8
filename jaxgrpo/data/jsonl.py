"""The name by which older configs know `Table`, from when it read JSON Lines alone."""

from jaxgrpo.data.table import Table

Jsonl = Table
