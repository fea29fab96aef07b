"""What a process owes its user, whatever the library does.

Exceptions, files that are written whole or not at all, the cache folder and the offline
switch, forks, threads, progress bars, the log. Imports nothing else of the package.
"""
