"""The driver's side of the verbs: check, train. Functions here are the Python API; `raytrain_nlp/__init__.py` names them."""
