"""Code of users: loading it, calling it, and reporting its failures."""
