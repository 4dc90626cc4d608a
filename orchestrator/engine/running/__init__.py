"""Attempts while they run in this process: placed or claimed, on the loop or in a thread.

Owns: bodies, from the call to the outcome. Does not own: claims, turns and replays (the engine thread).
"""
