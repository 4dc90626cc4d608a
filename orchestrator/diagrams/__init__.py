"""What a workflow looks like: its source becomes a graph, a graph becomes a picture. Pure: no I/O, nothing imported.

Owns: ``parse`` (source → graph JSON), ``trace`` (an execution over a graph) and the renderers. Does not own where
sources are found (``engine.sources``), nor what a workflow does (``workflow``, which this room may not see).
"""
