"""The wire: connections, the HTTP exchange on one of them, proxies and compression.

Owns the sockets. Imports urllib3 and ssl only when the first connection is opened.
"""
