"""The `stagewire` command, and what it needs of supervisord."""
