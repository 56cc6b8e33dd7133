"""
Pictures that follow one another: who in this one was in the one before.
"""
