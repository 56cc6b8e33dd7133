"""
Visits and what can honestly be said of the public: stored, corrected for error, summed, reported.
"""
