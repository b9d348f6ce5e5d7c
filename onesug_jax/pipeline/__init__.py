"""What runs the stages: a stage as data, the work directory, one writer, and the plan.

    spec      what a stage is, and the context it is given
    workdir   the folders of WORK_DIR, and the manifest that says what each was made from
    plan      what a command would do, and why it is refused; touches nothing
    lock      one writer in a work directory
    runner    does what was planned: new results beside the old, then one rename

Nothing here knows gin, jax or any stage: `main` and `stages` do.
"""
