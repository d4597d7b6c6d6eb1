"""Judges measured on votes that none of them learned: metrics, baselines to beat, summaries over seeds, the report."""
