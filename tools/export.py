"""The same program as `python -m jaxgrpo.export`."""

from jaxgrpo.config.command_line import run_main
from jaxgrpo.export import main

if __name__ == "__main__":
    run_main(main)
