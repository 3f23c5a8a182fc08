"""Over what an envelope leaves: connections, one HTTP exchange, proxies and compression.

Owns the sockets. Imports urllib3 and ssl only when the first connection is opened.
"""
