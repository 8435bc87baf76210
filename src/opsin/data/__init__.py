"""Pictures and labels from files to batches."""
