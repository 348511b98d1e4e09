"""How much an exec may report: bounds for the program in the sandbox and its reader.

They are sent with the plan of an exec, so both sides have the same."""

# For each stream. LibreChat's edit_file reads files of 10 MiB with `cat`.
OUTPUT_BYTES = {"stdout": 12 * 1024 * 1024, "stderr": 1024 * 1024}
PIPE_BYTES = 32 * 1024  # read from a pipe at once, for one line of the report
CHUNK_BYTES = 96 * 1024  # read from a file at once, for one line of the report
MAX_FILES = 50
# What goes by E2B's file API is streamed, but costs a request, and at first a
# connection. At a round trip of 50 ms that takes as long as 0.4 to 1 MB take in the
# cell that runs, each way. Less goes in that way, because the kernel keeps each cell.
CELL_INPUT_BYTES = 256 * 1024  # of all inputs, the smallest first
CELL_SCRIPT_BYTES = 100_000
CELL_OUTPUT_BYTES = 512 * 1024  # of all files written, the smallest first
DATA = "/mnt/data"  # where a script finds its files, in the sandbox
