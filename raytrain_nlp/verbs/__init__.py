"""The Python API behind the command line, one module for each verb. `raytrain_nlp/__init__.py` exports the
functions.
"""
