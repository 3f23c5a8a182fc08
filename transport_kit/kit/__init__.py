"""The core of every integration: the kit, and the four routes that it answers.

Knows no framework; integrations translate requests and responses.
"""
