"""The libraries that bo-act stands on: optional ones, private parts, and global settings."""
