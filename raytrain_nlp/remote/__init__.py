"""Object storage as `storage_path`: objects, each node's copies of them, and what carries changes between the two."""
