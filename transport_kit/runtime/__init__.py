"""The base of all other rooms.

Owns the errors, the version, the log, the re-entrant lock, threads, forks, and the end of the process.
Imports no other room.
"""
