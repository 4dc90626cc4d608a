"""Instances that others have started: what a parent reads of them, and they of their parent.

Owns: these queries, the net that catches children of ended parents, and the condition under which retention spares a
child. Does not own: creating them (``store.turns``: it comes with the parent's turn), nor what follows from what is
read (``workflow.deciding.children``).
"""

from __future__ import annotations

from orchestrator.workflow.status import FINISHED

_FINISHED = ", ".join(f"'{status}'" for status in sorted(FINISHED))

KEPT_FOR_PARENT = f"""EXISTS (SELECT 1 FROM orchestrator_instances kept_for
  WHERE kept_for.id = i.parent_id AND kept_for.status NOT IN ({_FINISHED}))"""
"""SQL: whether the instance ``i`` must be kept, expired or not, because its parent has not ended: it may yet have to
undo it."""
