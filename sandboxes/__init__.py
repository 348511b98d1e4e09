"""Sandboxes of E2B: which one a call gets, what it is asked, what it answers.

`pool` says which sandbox a call gets and when each is ended; `keeping` adds sessions
and sandboxes made ahead, where they are on. `sandbox` is one of them, and the only
module that knows E2B's SDK; `stream` reads what E2B answers to a run; `timing` has the
limits and pauses."""
