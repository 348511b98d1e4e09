"""How much an exec may report: bounds of the program in the sandbox, and of its reader.

They are sent with the plan of an exec, so both sides have the same."""

# By stream. edit_file reads files of 10 MiB by `cat`.
OUTPUT_BYTES = {"stdout": 12 * 1024 * 1024, "stderr": 1024 * 1024}
PIPE_BYTES = 32 * 1024  # read from a pipe at once, a line of the report
CHUNK_BYTES = 96 * 1024  # read from a file at once, a line of the report
CHUNKS_A_CELL = 80  # the kernel keeps what a cell prints
PIECE_BYTES = CHUNKS_A_CELL * CHUNK_BYTES
MAX_FILES = 50
# Files up to this come with the run, larger ones in cells of their own, after it.
SMALL_BYTES = 1024 * 1024
