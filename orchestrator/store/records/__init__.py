"""What is asked about many instances, or done to one as a whole: lists, children, schedules, deletion, restarts.

Owns: these verbs on rows. Does not own: turns, claims and alarms, which are beside it.
"""
