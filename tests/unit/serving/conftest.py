"""The one tiny export."""

from tests.tiny_export import tiny_export

__all__ = ["tiny_export"]
