"""The device's half: pure functions of arrays, which programs.py compiles."""
