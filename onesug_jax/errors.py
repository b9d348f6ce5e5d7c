"""The one exception for mistakes a user can mend: `main` prints its message without a traceback."""


class UserError(Exception):
    """A mistake in a file, row, column or flag.

    The message names the place, what was expected, what was found, and the mend.
    """

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: the message alone, as `main` prints it."""
        return [f"error: {plain(self)}"]


def plain(error: UserError) -> str:
    """The message without gin's word on which configurable was being called; that helps nobody
    who mistyped a path.
    """
    return str(error).split("\n  In call to configurable")[0]
