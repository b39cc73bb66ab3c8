"""The command line: `raytrain-nlp VERB JOB`, one file for each verb. Large libraries are imported when a verb runs."""
