"""Kitbash: an answer engine for a handful of unequal machines."""

__version__ = "0.1.0"
