"""The one exception that users are meant to read."""


class HialignError(ValueError):
    """A mistake in what hialign was given: one line that says what, where and what to do.

    The command line prints it without a traceback and exits with 1. Notebooks stop at it before
    any training starts. It is a `ValueError`, so code that catches that kind around a call which may
    raise this one must let this one pass first.
    """
