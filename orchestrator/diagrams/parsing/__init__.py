"""The walk through the source of a workflow, from names and values to nodes.

Each module adds one thing to the walk and knows only those before it: ``sources``, ``values`` and ``project`` are
what is known; ``scopes``, ``awaiting``, ``expressions``, ``steps``, ``calls`` and ``statements`` are the walk.
"""
