"""The JSON API of the Workflows tab: ``/api/workflows…``, beside Flower's own.

``operations`` is the one table of what there is: the handlers, the routes and the OpenAPI document are made from it.
"""
