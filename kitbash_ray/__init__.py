"""Kitbash: an answer engine for a handful of unequal machines.

from kitbash_ray import Kitbash
Kitbash().ask("What is ATP?")
"""

from kitbash_ray.client import Kitbash
from kitbash_ray.errors import KitbashError
from kitbash_ray.types import Answer, Event, LayerResult, Query, Source, Step, Turn

__version__ = "0.1.0"

__all__ = ["Answer", "Event", "Kitbash", "KitbashError", "LayerResult", "Query", "Source", "Step", "Turn"]
