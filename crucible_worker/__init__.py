"""Pulls evaluation tasks from a queue and runs their untrusted code in Docker or gVisor sandboxes."""

__version__ = "0.1.0"
