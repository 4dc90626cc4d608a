"""Creating instances: what is wished for, what of it may be created now, and the insert.

Owns: everything between ``Workflow.create`` and the rows. Does not own: the limits (``control.gatekeeping``), the SQL
(``store.instances``).
"""
