"""``opfuse`` and ``python -m opfuse``."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Runs the command line; Ctrl-C while it is still being imported ends the process at once."""
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if usual:  # else it is ignored, as for a background job of a script
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from opfuse import cli

    return cli.main(interruptible=usual)


if __name__ == "__main__":
    sys.exit(main())
