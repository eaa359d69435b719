"""The wall between Processor and the code that its users write.

Trusted, on our side: `host` (starts, feeds, measures and kills guests) and `library` (the same for people
and tests). Hostile, on the other side: everything in a guest process, ours included, once user code has run
in it: `guest`, `capabilities`, `dialect`, `values`. Between them: `wire`, the only bytes that cross. The
boundary is what the kernel enforces (`jail`); the dialect is the language contract, the early message, and
a second line. Nothing secret is ever put on the far side.

Tried and dropped:

- Forking guests from the host: they would inherit its memory, with credentials in it.
- Confining threads or sub-interpreters of the host: nothing in CPython holds hostile code in a process.
- RLIMIT_CPU: it counts over a guest's whole life, so a busy guest dies of old age; the host reads the
  processor clock of each run instead.
- An absolute memory limit: CPython alone needs more than small limits allow; limits are on top of that.
- SIGALRM raising in user code: a loop that catches BaseException swallows it. The guest's timers only add
  the line that was running to an end that the host decides.
- A seccomp filter on the zygote as well: it runs no user code, and every guest would pay for two filters.
- libseccomp: one more thing to install, for what 200 lines of classic BPF do.
- pickle for context or frames: reading it is running it.
- Programs of shell steps in the guests' jail: it would open execve and fork to every guest. They have a cell
  of their own (`shell_jail`), which allows what is not named, where a guest's allows only what is.
- A read-only mount of the packages for plain Python: its guests would have to open files and map code, and
  the two calls for that are what the jail is best at refusing. Packages are read before the jail closes.
"""
