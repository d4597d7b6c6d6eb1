"""Entry points: `python -m distill.NAME`, one file a stage. `plan/` is the planner, `config.py` the configuration."""
