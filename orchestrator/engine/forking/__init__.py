"""Bodies in processes of their own: what the parent of a prefork worker does, what its children do, what they say.

A child runs the engine like any worker (claim, replay, body, turn) under an incarnation of its own, which its parent
keeps alive. Only the parent can end a body that does not listen: it kills the child.
"""
