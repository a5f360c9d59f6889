"""What can go wrong, one class per kind of error.

Every message says what was given, what was wanted, what to do next. The command line turns the classes into exit
codes; nothing else may depend on them beyond catching.
"""


class VitslimError(Exception):
    """Root of every error that vitslim raises on purpose."""

    exit_code = 2


class ConfigError(VitslimError):
    """An argument, option or recipe key that cannot be used as given."""


class UnsupportedModelError(VitslimError):
    """A model that no adapter can take, or that a method refuses; the reason is in the message."""


class DataError(VitslimError):
    """Images that are missing, empty, unreadable or of the wrong number of classes."""


class CheckpointError(VitslimError):
    """A file or folder of ours that is missing, truncated, of another format, or does not fit."""


class MissingDependencyError(VitslimError):
    """An optional library or device that the asked-for work needs is not there."""

    exit_code = 3


class CheckFailedError(VitslimError):
    """A guarantee that was measured and not kept: parity out of tolerance, a diverged loss."""

    exit_code = 1


class VitslimWarning(UserWarning):
    """Something that was done as asked, but by a guess of ours or with a result that is likely not what was meant.

    The command line shows it as a note.
    """
