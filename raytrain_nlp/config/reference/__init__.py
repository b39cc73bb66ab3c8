"""The keys of a job file, as a JSON schema for editors and as a reference for people. Both are made from the models."""
