"""What is done to texts, of a caller's code and of its run. All of it is pure.

These modules import nothing but each other and a few modules of the standard library,
which a test holds: an auditor of the service need not read them."""
