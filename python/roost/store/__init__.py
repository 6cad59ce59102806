"""The store: keeps rows and decides nothing. `base` is the interface, `sqlite` the embedded store."""

from .base import Outcome, Store, StoreError, StoreFailed
from .sqlite import SqliteStore

__all__ = ["Outcome", "SqliteStore", "Store", "StoreError", "StoreFailed"]
