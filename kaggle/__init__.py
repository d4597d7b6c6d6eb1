"""Submitting an export to Kaggle. This file keeps an installed API client of the same name from hiding the package."""
