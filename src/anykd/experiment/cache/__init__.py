"""Stored outputs of a teacher: made, checked, shown, and put in the teacher's place.

Import from the modules themselves: those that make a cache know how a run is put together, which
knows how a cache is used.
"""
