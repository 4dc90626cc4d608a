"""What a workflow means: names, configuration, stored values, definitions, status, replay and turns.

Everything in this room is pure. It does no I/O, reads no clock, throws no dice and knows no framework; time
and chance are arguments. Import from the modules: this file re-exports nothing.
"""
