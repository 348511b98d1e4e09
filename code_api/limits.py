"""How much an exec may report: bounds for the program in the sandbox and its reader.

They are sent with the plan of an exec, so both sides have the same."""

# For each stream. LibreChat's edit_file reads files of 10 MiB with `cat`.
OUTPUT_BYTES = {"stdout": 12 * 1024 * 1024, "stderr": 1024 * 1024}
PIPE_BYTES = 32 * 1024  # read from a pipe at once, for one line of the report
CHUNK_BYTES = 96 * 1024  # read from a file at once, for one line of the report
CHUNKS_A_CELL = 80  # so few, because the kernel keeps the output of a cell
PIECE_BYTES = CHUNKS_A_CELL * CHUNK_BYTES
MAX_FILES = 50
# Files with at most this many bytes together come with the run; others come after it,
# in cells of their own.
SMALL_BYTES = 1024 * 1024
