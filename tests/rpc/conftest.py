"""Hypothesis, the same on every machine: no deadlines, no clock, and no chance in CI.

``ARRAKIS_EXPLORE=1`` looks for new examples instead, many more of them.
"""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "repeatable",
    derandomize=True,
    max_examples=50,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "explore", settings.get_profile("repeatable"), derandomize=False, max_examples=2000
)
settings.load_profile("explore" if os.environ.get("ARRAKIS_EXPLORE") else "repeatable")
