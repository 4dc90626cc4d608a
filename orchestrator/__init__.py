"""Durable workflows on Celery."""
