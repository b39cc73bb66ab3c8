"""`raytrain-nlp sweep`: the `verb`, and what it shows (`table`)."""
