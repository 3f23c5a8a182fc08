"""The base of all other rooms.

This package owns the errors, the version, the log, the re-entrant lock, threads, forks, and the end of the
process. It imports no other room.
"""
