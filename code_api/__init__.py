"""LibreChat's code interpreter: the API that LIBRECHAT_CODE_BASEURL leads to.

`store` keeps files, `sweeper` bounds how many, `upload` takes them in. `request` and
`reply` are the two sides of an exec, `cells` turns an exec into cells of code, which
run in_sandbox/script.py, and `report` reads the sandbox's report. `reading` knows which
exec needs no sandbox, and `execute` holds these together. No module here knows Flask or
the SDK.
"""
