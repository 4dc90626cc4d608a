"""What workflow code is written in: definitions, steps, retries, durations, names.

Owns: what authors see, and the checks at their calls. Does not own: replaying it, nor deciding anything.
"""
