"""What several files here share."""

from tests.services.conn import conn, links

__all__ = ["conn", "links"]
