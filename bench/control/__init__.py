"""The control plane under load: each measurement says what was promised, what was seen, and whether that is kept.

Owns: the measurements (a module each), ``python -m bench.control``. Does not own: servers and workers
(``bench.cluster``).
"""
