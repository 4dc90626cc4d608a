"""What applications hold: ``Orchestrator``, workflows, instances. Sync methods, and async twins with the prefix ``a``.

Owns: the public verbs and their checks. Does not own: any decision (``workflow``), SQL (``store``) or messages
(``dispatch``), which are imported only when a verb is called: defining a workflow needs no server library.
"""
