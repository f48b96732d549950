"""The one exception that means "the user can fix this": the command line prints it as a single line."""


class UserError(ValueError):
    """Bad input. The message is one line that names the field and the cure."""
