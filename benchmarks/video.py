"""
Visitors in videos with known truth, real time and memory: ``benchmarks/visitors.py`` by its issue's
name. What it does is said there.
"""

from visitors import main

if __name__ == "__main__":
    main()
