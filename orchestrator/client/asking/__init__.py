"""Asking about instances: where one stands, its steps, its end. Owns: reading for people. Does not own: verbs."""
