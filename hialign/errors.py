"""The one exception that users are meant to read."""


class HialignError(Exception):
    """A mistake in what hialign was given: one line that says what, where and what to do.

    The command line prints it without a traceback and exits with 1; notebooks stop at it before
    any training starts.
    """
