"""Who starts groups of workers, watches them and starts them again."""
