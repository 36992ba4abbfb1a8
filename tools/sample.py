"""The same program as `python -m jaxgrpo.sample`."""

from jaxgrpo.config.command_line import run_main
from jaxgrpo.sample import main

if __name__ == "__main__":
    run_main(main)
