"""When an envelope leaves: the worker, its threads, retries, rate limits, and the accounts of every item.

Owns no connection: what delivers is a function.
"""
