"""What an integration holds: the kit, and the four routes that it answers.

Knows no framework; the integrations translate.
"""
