"""Files that others see whole or not at all, in a folder or in a bucket (`s3://`, `gs://`)."""
