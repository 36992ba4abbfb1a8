"""Provides problems: word problems made here, GSM8K, JSON Lines files, and their order."""
