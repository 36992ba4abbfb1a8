"""Fine-tunes: `python -m jaxgrpo.sft`."""

from jaxgrpo.config.command_line import run_main
from jaxgrpo.sft.program import main

if __name__ == "__main__":
    run_main(main)
