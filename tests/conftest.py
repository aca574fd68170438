"""Settings of the whole suite."""

from __future__ import annotations

from hypothesis import settings

# Examples are drawn the same way in every run; a deadline would assert on time.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")
