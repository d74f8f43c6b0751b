"""Programs of strangers, run behind walls of the operating system: ``Sandbox(...).run(Job(...), Limits(...))``.

Sandbox (process.py)     the caller's side: limits of time, output and memory; what came back
launcher.py              unprivileged process that starts one sandbox after the other
bwrap.py, namespaces.py  the walls, either of them;  view.py, filter.py, cgroup.py: what they have in common
harness.py               the first process inside: starts the program, is the only one who reports
bridge.py                Python tests in one process, the program in another; plain.py: the data between them
"""
