"""What is sent to a sandbox and runs there: the service reads it as text.

Python 3.8 and its standard library only. It can do nothing that the caller's code could
not do, so an auditor of the service reads it last."""
