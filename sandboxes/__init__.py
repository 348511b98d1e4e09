"""Sandboxes of E2B: which one a call gets, what it is asked, what it answers.

`pool` says which sandbox a call gets and when each is ended; `sandbox` is one of them,
and the only module that knows E2B's SDK; `stream` reads what E2B answers to a run."""
