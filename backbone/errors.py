"""The one error a user can cause and mend."""


class UserError(ValueError):
    """Something the user gave is wrong. The message names the file, field or value, and the fix.

    Jobs print it without a traceback and exit with code 2. Everything else is a bug and keeps its traceback.
    """


class BadImage(UserError):
    """One image cannot be used: names it and says why. Policy (`data.on_bad`) decides whether the run stops."""
