"""
Faces with labels: read as published, checked, split, prepared for training, and described.
"""
