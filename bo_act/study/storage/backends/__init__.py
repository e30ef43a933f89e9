"""What studies are stored in: databases and journal files, their locks, heartbeats and errors."""
