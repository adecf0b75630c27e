"""The version of the software, as installed."""

from importlib.metadata import version

__version__ = version("matl")
