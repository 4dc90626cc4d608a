"""The Workflows tab in Flower: its pages, its JSON API, and metrics.

``flower`` is the only module that touches Flower's insides. ``documents`` are plain functions that know neither Flower
nor tornado. Nothing below this room knows that there is one.
"""
