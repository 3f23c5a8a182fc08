"""Configuration: options, the kinds of their values, and the DSN.

This package owns names, units, bounds and defaults. It does no I/O.
"""
