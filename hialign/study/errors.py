"""The one exception that users are meant to read."""


class HialignError(ValueError):
    """A mistake in what hialign was given. One line says what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with 1. Notebooks stop at it before any
    training starts. As it is a `ValueError`, code that catches `ValueError` around a call that may
    raise this one must re-raise this one first.
    """
