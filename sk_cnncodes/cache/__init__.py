"""The code cache: codes by code spec and image, in memory or in an SQLite file.

`CodeCache`, its stores, and the temporary file that a process shares with its workers.
Knows digests and arrays, no images and no networks. Imports `base` alone.
"""
