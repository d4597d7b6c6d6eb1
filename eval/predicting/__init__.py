"""Judging a file without votes: `run.py` from input to submission."""
