"""Tracking: workers append figures to a file of the run, the driver ships them to MLflow. The file is the truth."""
