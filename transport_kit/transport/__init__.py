"""Delivery of envelopes: the interface, the transports, and the factory that chooses one.

Owns the meaning of answers (`http.py`), the time of each delivery (`worker/`) and the connections (`wire/`).
"""
