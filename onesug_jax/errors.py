"""The one exception for mistakes a user can mend: `main` prints its message without a traceback."""


class UserError(Exception):
    """A mistake in a file, row, column or flag.

    The message names the place, what was expected, what was found, and the mend.
    """
