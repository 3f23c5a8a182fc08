"""The background worker: its threads, retries, rate limits, and the ledger of every item.

This package owns no connection: it calls a function that delivers an envelope.
"""
