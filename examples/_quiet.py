"""The flag that leaves out progress bars."""

import argparse


def add_quiet(parser: argparse.ArgumentParser) -> None:
    """Adds ``--quiet``: with it ``args.progress`` is False, for no bars at all; without it None.

    None leaves the choice to the library, which shows bars where someone watches.

    :param parser: of the script's flags.
    """
    parser.add_argument(
        "--quiet", dest="progress", action="store_const", const=False, help="no progress bars"
    )
