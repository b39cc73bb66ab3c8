"""Preference data: tuning language models on them, and reward models."""
