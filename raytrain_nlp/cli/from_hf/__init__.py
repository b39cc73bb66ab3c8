"""`raytrain-nlp from-hf`: turns commands of transformers' example scripts into jobs."""
