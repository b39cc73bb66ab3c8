"""`raytrain-nlp from-hf`: commands of transformers' example scripts as jobs."""
