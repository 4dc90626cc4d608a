"""A wall clock that is wrong by ``CHAOS_SKEW_S`` seconds, for a process with this folder on its PYTHONPATH."""

import os
import time

_skew = float(os.environ.get("CHAOS_SKEW_S", "0"))
_time, _time_ns = time.time, time.time_ns
time.time = lambda: _time() + _skew
time.time_ns = lambda: _time_ns() + int(_skew * 1e9)
