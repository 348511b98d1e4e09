"""`cat` of one input is answered from the store, without a sandbox.

LibreChat's read_file and edit_file send exactly that, for each file that they read."""

import re

from code_api.limits import OUTPUT_BYTES
from code_api.request import ExecRequest
from code_api.store import StoredFile

# cat '/mnt/data/sales.csv': in such quotes each character means itself. A relative name
# may begin with `-`, as an option does, so the name has to be absolute.
_CAT = re.compile(r"cat '/mnt/data/([^'\n]+)'\n?")
# Names are shorter: see names.py.
_MAX_CODE_BYTES = 2000


def is_cat(request: ExecRequest) -> bool:
    return bool(_found_cat(request))


def _found_cat(request: ExecRequest) -> re.Match[str] | None:
    if request.language_name != "bash" or len(request.code) > _MAX_CODE_BYTES:
        return None
    return _CAT.fullmatch(request.code.decode())


def file_to_read(request: ExecRequest) -> StoredFile | None:
    """The input that the script does nothing but print, if it is such a script."""
    found = _found_cat(request)
    if not found:
        return None
    name = request.other_names().get(found[1], found[1])
    stored = request.inputs.get(name)
    if not stored or stored.size > OUTPUT_BYTES["stdout"]:
        return None
    # In a sandbox, an input is left out if another one needs a folder of its name.
    if any(
        other.startswith(f"{name}/") or name.startswith(f"{other}/")
        for other in request.inputs
    ):
        return None
    return stored
