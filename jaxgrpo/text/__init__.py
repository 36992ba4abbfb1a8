"""Turns problems into prompts and tokens, and tokens into text."""
