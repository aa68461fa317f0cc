"""What every test shares: one hypothesis profile, under which a run is the same each time."""

from hypothesis import settings

settings.register_profile("stagewire", derandomize=True, deadline=None, max_examples=60, database=None)
settings.load_profile("stagewire")
