"""The one exception for what a user can mend."""


class UserError(Exception):
    """Something the user gave cannot be used.

    The message is one line: what was wrong, where, and what to do. The command line prints it
    without a traceback and exits with code 2.
    """
