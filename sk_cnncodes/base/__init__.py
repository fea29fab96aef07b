"""Infrastructure that all other sub-packages share.

Exceptions, atomic writes, the cache folder and the offline switch, forks, threads,
progress bars, logging. Imports nothing else from the package.
"""
