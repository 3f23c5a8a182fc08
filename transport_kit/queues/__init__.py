"""Where a sealed envelope waits: the protocol of queues, the queue in memory, and the spool.

Owns the waiting. When something is delivered, and over what, belongs to `transport/`. The spool is imported
only when an option names one.
"""
