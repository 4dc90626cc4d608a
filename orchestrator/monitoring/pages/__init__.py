"""The pages of the tab, rendered here and kept alive in the browser by the JSON API.

Each module has the handlers of one page. What a page shows comes from ``monitoring.documents``.
"""
