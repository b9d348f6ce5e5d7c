"""The execution of stages: a stage as data, the work directory, one writer, and the plan.

    spec      a stage as data, and its context
    workdir   the folders of WORK_DIR, and the manifest of the inputs and settings of each
    plan      what a command would do, or why it is refused; changes nothing
    lock      one writer in a work directory
    runner    executes the plan: new results beside the old, then one rename

Nothing here imports gin or a stage: `main` and `stages` do.
"""
