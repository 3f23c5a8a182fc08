"""The wire: connections, the HTTP exchange on one of them, proxies and compression.

This package owns the sockets. It imports urllib3 and ssl only when the first connection is opened.
"""
