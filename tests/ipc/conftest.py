"""What several files here share."""

from tests.ipc.pipe import bench

__all__ = ["bench"]
