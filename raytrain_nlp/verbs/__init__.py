"""The Python API behind the command line, a module a verb. `raytrain_nlp/__init__.py` names the functions."""
