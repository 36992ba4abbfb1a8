"""Says whether a run fits its chips and what they allow, by compiling it ahead of time for them."""
