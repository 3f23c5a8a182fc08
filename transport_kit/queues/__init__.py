"""Queues of sealed envelopes: their protocol, the queue in memory, and the spool on disk.

Delivery belongs to `transport/`. The spool is imported only if an option names one.
"""
