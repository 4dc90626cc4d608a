"""An application's own tasks as steps: sent as signatures, claimed and reported where they run.

Owns: their messages, and what their workers say. Does not own: those workers (``dispatch.existing``), nor what an
outcome does (``workflow``).
"""
