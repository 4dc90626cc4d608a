"""The routes of the pages.

Owns: their patterns and names (for ``reverse_url``). Does not own: the handlers.
"""

from __future__ import annotations

from tornado.web import url

from orchestrator.monitoring.pages.assets import AssetHandler
from orchestrator.monitoring.pages.instance import InstancePage, StepPage, TaskPage, TimelinePart
from orchestrator.monitoring.pages.listing import WorkflowsPage
from orchestrator.monitoring.pages.workflow import WorkflowPage

ROUTES = [
    url(r"/workflows", WorkflowsPage, name="workflows"),
    url(r"/workflows-assets/([\w.-]+)", AssetHandler, name="workflows-asset"),
    url(r"/workflows-tasks/([0-9a-f-]{36})", TaskPage, name="workflows-task"),
    url(r"/workflows/([^/]+)", WorkflowPage, name="workflow"),
    url(r"/workflows/([^/]+)/([^/]+)", InstancePage, name="workflow-instance"),
    url(r"/workflows/([^/]+)/([^/]+)/timeline", TimelinePart, name="workflow-timeline"),
    url(r"/workflows/([^/]+)/([^/]+)/steps/([^/]+)", StepPage, name="workflow-step"),
]
