"""Any number of images, wherever they are: sources, and shards of codes.

Knows folders, tables, archives and data sets as streams of images, and what a folder
of Parquet shards looks like. `CNNCodeTransformer.iter_codes` does the computing.
"""
