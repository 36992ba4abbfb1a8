"""Will a run fit, and what do the chips' peaks allow? Compiled ahead of time for chips that need not be here."""
