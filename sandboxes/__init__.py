"""E2B's sandboxes: which one a call gets, how it runs code, how E2B's answer is read.

`pool` decides which sandbox a call gets and when each is ended; `keeping` adds sessions
and sandboxes made ahead, if they are on. `sandbox` is a single one, and the only module
that knows E2B's SDK; `stream` reads E2B's answer to a run; `timing` has the limits and
pauses."""
