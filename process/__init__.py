"""The process: gunicorn's worker, made patient with slow clients, and the log."""
