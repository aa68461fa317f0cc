"""Gives the tests here what several of them share."""

from tests.pipe.pipe import bench

__all__ = ["bench"]
