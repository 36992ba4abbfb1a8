"""Compares settings on the embedded model over seeds.

    python -m tools.compare objectives
    python -m tools.compare in_flight --seeds 0 1 2
    python -m tools.compare int8 --seeds 0 1 2
    python -m tools.compare distillation --seeds 0 1 2

Each arm is a config; each is run with every seed, and what is there already is not run again. The
table has means over the seeds with 95 % intervals, and differences to the first arm seed by seed.
Distillation needs teachers, and says how to make those that are not there.
"""
