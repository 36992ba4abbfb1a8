"""Command line of the page."""

import argparse
from pathlib import Path

from jaxgrpo.config.command_line import run_main
from jaxgrpo.files import run_folder, with_addresses, write_atomically
from tools.report.page import make_page


def main(argv: list[str]) -> None:
    """Writes the page and says where it is."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.report",
        description="Write a page of HTML about runs, which needs no network.",
    )
    parser.add_argument("out", nargs="+", metavar="OUT", help="a run's --config.out")
    parser.add_argument(
        "--to", type=Path, help="the file it writes (OUT/report.html of the first OUT)"
    )
    arguments = parser.parse_args(argv)
    folders = [run_folder(out) for out in arguments.out]
    page = make_page(folders)
    target: Path = arguments.to or folders[0] / "report.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, page.html)
    print(
        f"{with_addresses(str(target))}: {len(page.html) / 1e6:.1f} MB, {page.shown:,} of the "
        f"{page.written:,} groups that were written"
    )


if __name__ == "__main__":
    run_main(main)
