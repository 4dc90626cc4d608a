"""The walk through the source of a workflow, from names and values to nodes.

Each module adds one thing to the walk and knows only those before it. What is known: ``sources``, ``atoms``,
``values``, ``project``. The walk: ``scopes``, ``awaiting``, ``expressions``, ``steps``, ``functions``, ``calls``,
``compound``, ``statements``.
"""
