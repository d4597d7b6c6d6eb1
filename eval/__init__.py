"""Judges measured on held-out votes: metrics, baselines to beat, summaries over seeds, and the report."""
