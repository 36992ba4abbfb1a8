"""Rewards: functions of (problem, completion's text), and the pool of worker processes that computes them.

Imports nothing: a worker process should load only what its rewards need. Never jax.
"""
