"""The host's half of a step: problems in, judged groups out, until the batch is full."""
