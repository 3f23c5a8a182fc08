"""What is sent: envelopes and items, their sealed bytes, JSON and framing; and what a loss is.

Owns everything about an envelope that needs neither a queue nor a network.
"""
