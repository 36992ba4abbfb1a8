"""Rewards computed in worker processes, with deadlines."""
