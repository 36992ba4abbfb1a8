"""Runs a notebook's cells in order, in a new Jupyter kernel, and prints how long each took.

    python -m tools.run_notebook tools/colab.ipynb
    python -m tools.run_notebook tools/colab.ipynb --save      what it showed is stored in it

Needs `pip install '.[notebook]'`.
"""

import argparse
import sys
import time
from pathlib import Path

import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).parent.parent


def run(notebook: NotebookNode, timeout: int) -> str:
    """Executes the code cells in the repository's root, and puts their outputs into the notebook.

    Returns "", or the source and the traceback of the first cell that fails, which is the last one
    that is run.

    timeout: seconds that one cell may take
    """
    # Here, so that the command line can be read where there is no Jupyter.
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        resources={"metadata": {"path": str(ROOT)}},
        record_timing=False,  # times in the file would differ after each run
    )
    with client.setup_kernel():
        # Cell by cell, so that each one's time is shown as soon as it is done.
        for index, cell in enumerate(notebook.cells):
            started = time.monotonic()
            try:
                client.execute_cell(cell, index)
            except CellExecutionError as error:
                return str(error)
            seconds = time.monotonic() - started
            if cell.cell_type == "code":
                print(f"{seconds:6.1f} s  {cell.source.splitlines()[0]}", flush=True)
    return ""


def main(argv: list[str]) -> None:
    """Runs as the command line says; exits with 1 if a cell fails."""
    about = str(__doc__).splitlines()[0]
    parser = argparse.ArgumentParser(
        prog="python -m tools.run_notebook", description=about
    )
    parser.add_argument("notebook", type=Path, help="an .ipynb file")
    parser.add_argument(
        "--save", action="store_true", help="store what the cells showed in the file"
    )
    parser.add_argument(
        "--timeout",
        type=int,
        default=1800,
        help="seconds that one cell may take; default 1800",
    )
    options = parser.parse_args(argv)
    # The file is changed only with --save, and only after every cell has run.
    notebook = nbformat.read(options.notebook, as_version=4)
    error = run(notebook, options.timeout)
    if error:
        print(f"error: {options.notebook}: {error}", file=sys.stderr)
        sys.exit(1)
    if options.save:
        nbformat.write(notebook, options.notebook)


if __name__ == "__main__":
    main(sys.argv[1:])
