"""Drivers of outside resources: what a session has elsewhere and must end with it, and what a restart left behind.

`marker` is the one definition of the names that resources bear, `reap` decides what nobody owns, `base` is the
interface of a driver; `http`, `process` and `tmux` are drivers. Nothing here knows sessions, the store or gRPC, and
importing this package imports no driver: each brings its own libraries.
"""

from .base import BadOption, Driver, DriverError, Item, Lister, Resource
from .marker import Marker

__all__ = ["BadOption", "Driver", "DriverError", "Item", "Lister", "Marker", "Resource"]
