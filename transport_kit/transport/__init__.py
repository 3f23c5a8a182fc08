"""How an envelope leaves: the interface, the transports, and the factory that picks one.

Owns what an answer means (`http.py`), when something is sent (`worker/`) and over what (`wire/`).
"""
