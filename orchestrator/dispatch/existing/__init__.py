"""Workers of an application's own Celery app. Owns: what is added to the app, and what each worker holds of ours.

Does not own: its tasks as steps (``dispatch.foreign``), nor the engine.
"""
