"""What is said of a job file's keys: a schema for editors, words for people; both read the models."""
