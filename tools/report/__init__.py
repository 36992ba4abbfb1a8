"""A page about runs: curves, the settings in which they differ, and what was written.

    python -m tools.report OUT [OUT ...]

runs.py reads runs and groups those that differ in nothing but a seed; rollouts.py reads what they
wrote; curves.py and pass_rates.py make charts; page.py puts all into one file of HTML.
"""
