"""Envelopes and items, their sealed bytes, JSON and framing; and the reasons and quantities of losses.

This package owns all of an envelope that needs neither a queue nor a network.
"""
