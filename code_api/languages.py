"""The languages that LibreChat may ask for, and how each is started in a sandbox."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Language:
    title: str  # as the docs name it
    tool: str  # the program that the sandbox's template must have
    script_name: str
    command: str  # for sh: $0 is the script, $@ are its arguments
    # Whether the script lies in the data folder: Node resolves relative requires from
    # the script's folder.
    beside_data: bool = False


def _interpreted(
    title: str, tool: str, script_name: str, *, beside_data: bool = False
) -> Language:
    command = f'exec {tool} "$0" "$@"'
    return Language(title, tool, script_name, command, beside_data)


def _compiled(title: str, tool: str, script_name: str, options: str = "") -> Language:
    command = f'{tool} -o "$0.out" "$0"{options} && exec "$0.out" "$@"'
    return Language(title, tool, script_name, command)


LANGUAGES = {
    "bash": _interpreted("bash", "bash", "script.sh"),
    "py": _interpreted("Python", "python3", "script.py"),
    "js": _interpreted("JavaScript", "node", "script.js", beside_data=True),
    "ts": _interpreted("TypeScript", "tsx", "script.ts", beside_data=True),
    "java": _interpreted("Java", "java", "Main.java"),
    "r": _interpreted("R", "Rscript", "script.R"),
    "c": _compiled("C", "gcc", "main.c", " -lm"),
    "cpp": _compiled("C++", "g++", "main.cpp", " -std=gnu++20"),
    "f90": _compiled("Fortran", "gfortran", "main.f90"),
    "go": Language("Go", "go", "main.go", 'exec go run "$0" "$@"'),
    "rs": _compiled("Rust", "rustc", "main.rs"),
    "php": _interpreted("PHP", "php", "script.php"),
    "d": Language("D", "dmd", "main.d", 'exec dmd -run "$0" "$@"'),
}
