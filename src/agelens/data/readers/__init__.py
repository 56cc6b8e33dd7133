"""
Readers: each takes a data set exactly as its authors publish it and gives rows of one schema.

    read_utkface     names of files
    read_fairface    label tables with nine age ranges
    read_imdb_wiki   Matlab metadata with dates
    read_appa_real   real ages, and the mean and spread of people's votes
    read_agedb       names of files, with the person
    read_table       a CSV or Parquet file of your own
    read_tree        a folder tree of your own
"""

from agelens.data.readers.agedb import read_agedb
from agelens.data.readers.appa_real import read_appa_real
from agelens.data.readers.fairface import read_fairface
from agelens.data.readers.imdb_wiki import Cleaning, read_imdb_wiki
from agelens.data.readers.reading import ImportReport, Reading, ReadingLog, import_faces
from agelens.data.readers.table import ColumnMap, TableOptions, read_table
from agelens.data.readers.tree import read_tree
from agelens.data.readers.utkface import read_utkface

__all__ = [
    "Cleaning",
    "ColumnMap",
    "ImportReport",
    "Reading",
    "ReadingLog",
    "TableOptions",
    "import_faces",
    "read_agedb",
    "read_appa_real",
    "read_fairface",
    "read_imdb_wiki",
    "read_table",
    "read_tree",
    "read_utkface",
]
