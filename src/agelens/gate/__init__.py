"""
The age gate: a written policy, a threshold with a promise behind it, decisions that can be checked.
"""
