"""The one error a user can cause and mend."""


class UserError(ValueError):
    """Something the user gave is wrong. The message names the file, field or value, and the fix.

    Jobs print it without a traceback and exit with code 2. Everything else is a bug and keeps its traceback.
    """

    def __init__(self, message: str) -> None:
        # torch's loader processes hand an error over as the text of its traceback, which ends with the message.
        super().__init__(message.rpartition(f"\n{type(self).__module__}.{type(self).__name__}: ")[2].rstrip())


class BadImage(UserError):
    """One image cannot be used: names it and says why. Policy (`data.on_bad`) decides whether the run stops."""
