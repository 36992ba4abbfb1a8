"""Rewards computed in worker processes, with deadlines. Begin to read at `pool`."""
