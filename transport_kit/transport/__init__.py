"""Delivery of envelopes: the interface, the transports, and the factory that chooses one.

This package owns the meaning of answers (`http.py`), the time of each delivery (`worker/`) and the
connections (`wire/`).
"""
