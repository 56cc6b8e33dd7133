"""
Evidence about a model: what it gets wrong, for whom, and how far its numbers can be trusted.
"""
