"""Configuration: options, the kinds of their values, and the DSN.

Owns names, units, bounds and defaults. Does no I/O.
"""
