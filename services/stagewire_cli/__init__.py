"""Provides the `stagewire` command, its keeper, and our part in supervisord."""
