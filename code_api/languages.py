"""The languages that LibreChat may ask for, and how each is started in a sandbox."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Language:
    tool: str  # what the sandbox's template must have
    script_name: str
    command: str  # for sh: $0 is the script, $@ are its arguments
    # Node resolves relative requires from where the script lies.
    beside_data: bool = False


def _interpreted(tool: str, script_name: str, *, beside_data: bool = False) -> Language:
    return Language(tool, script_name, f'exec {tool} "$0" "$@"', beside_data)


def _compiled(tool: str, script_name: str, options: str = "") -> Language:
    command = f'{tool} -o "$0.out" "$0"{options} && exec "$0.out" "$@"'
    return Language(tool, script_name, command)


LANGUAGES = {
    "bash": _interpreted("bash", "script.sh"),
    "py": _interpreted("python3", "script.py"),
    "js": _interpreted("node", "script.js", beside_data=True),
    "ts": _interpreted("tsx", "script.ts", beside_data=True),
    "java": _interpreted("java", "Main.java"),
    "r": _interpreted("Rscript", "script.R"),
    "c": _compiled("gcc", "main.c", " -lm"),
    "cpp": _compiled("g++", "main.cpp"),
    "f90": _compiled("gfortran", "main.f90"),
    "go": Language("go", "main.go", 'exec go run "$0" "$@"'),
    "rs": _compiled("rustc", "main.rs"),
    "php": _interpreted("php", "script.php"),
    "d": Language("dmd", "main.d", 'exec dmd -run "$0" "$@"'),
}
