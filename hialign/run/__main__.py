"""The command `hialign`, from its first moment: Ctrl-C ends it in one line.

Importing takes a second or more, and Python answers Ctrl-C with a traceback meanwhile. Here nothing
is imported before that is settled.
"""

import os
import signal
import sys
from types import FrameType


def main() -> None:
    """Run the command line. Ctrl-C ends it at once until its work begins (`interruptible`)."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as behind `&` in a script
        signal.signal(signal.SIGINT, _end)
    from hialign.run import cli

    try:
        cli.main()
    except SystemExit as end:
        if end.code == 130:  # which typer makes of KeyboardInterrupt
            sys.stdout.flush()
            _end()
        raise


def _end(number: int = signal.SIGINT, frame: FrameType | None = None) -> None:
    """End without another word of Python's, as there is nothing (left) to tidy up."""
    command = " ".join(["hialign", *sys.argv[1:]])
    text = f"\nInterrupted. What is done is kept: `{command}` goes on from here.\n"
    os.write(2, text.encode(errors="replace"))
    os._exit(130)


if __name__ == "__main__":
    main()
