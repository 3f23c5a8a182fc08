"""The core of every integration: the kit, and the four routes that it answers.

This package knows no framework; integrations translate requests and responses.
"""
