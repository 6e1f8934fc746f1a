"""Operators of our own, one folder each."""
