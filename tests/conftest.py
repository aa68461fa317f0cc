"""What every test shares: one hypothesis profile, under which a run is the same each time, and patience."""

from hypothesis import settings

from lab import wait

settings.register_profile("stagewire", derandomize=True, deadline=None, max_examples=60, database=None)
settings.load_profile("stagewire")

wait.slack = 3.0
