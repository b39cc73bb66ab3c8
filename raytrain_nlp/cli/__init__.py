"""The command line: `raytrain-nlp VERB JOB`. One file a verb; nothing heavy is imported before a verb runs."""
