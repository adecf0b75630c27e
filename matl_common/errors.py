"""The root of the project's exceptions and the few every package shares.

A leaf exception belongs in the module that raises it; only those raised in many
places live here. Messages say what to do next and never carry patient data.
"""


class MatlError(Exception):
    """Root of every error this project raises on purpose."""


class InvalidInputError(MatlError):
    """A parser refused data that came from outside the process."""


class ConfigurationError(MatlError):
    """The operator's configuration cannot work as written."""


class IntegrityError(MatlError):
    """A digest, signature or proof does not match the bytes it covers."""
