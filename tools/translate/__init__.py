"""Translates the questions of a data set, through an OpenAI-compatible endpoint."""
