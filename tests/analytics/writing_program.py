"""Stores the visits of one crowd, one after another, and says each number once it is stored."""

from __future__ import annotations

import sys

from agelens.analytics.store import open_store
from analytics.people import crowd


def main() -> None:
    where, count = sys.argv[1], int(sys.argv[2])
    visits = crowd(count)
    with open_store(where) as store:
        print("ready", flush=True)
        for number, visit in enumerate(visits):
            store.add([visit])
            print(number, flush=True)


if __name__ == "__main__":
    main()
