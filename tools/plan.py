"""The same program as `python -m jaxgrpo.plan`."""

from jaxgrpo.config.command_line import run_main
from jaxgrpo.plan.command import main

if __name__ == "__main__":
    run_main(main)
