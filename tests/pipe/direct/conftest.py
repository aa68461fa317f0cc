"""Gives the tests here a bench that shows the transport's inside."""

from tests.pipe.pipe import direct_bench

__all__ = ["direct_bench"]
