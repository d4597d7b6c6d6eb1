"""The report of an evaluation: `page.py` fills `page.html.j2` and the templates beside it."""
