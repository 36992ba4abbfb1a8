"""`python -m tools.profile`: where the time of a GRPO step goes."""
