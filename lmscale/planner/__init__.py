"""The plan of an experiment: which runs share a program, on which devices, in how much memory and time.

A plan is execution: it changes a result by rounding at most. From a question to its file:

    devices       what is known of a device kind: peak FLOP/s, memory, links
    step_config   how one run's step is executed: mesh axes, micro-batch, remat, logit pieces
    memory        bytes that a run takes on each device
    roofline      seconds that a step takes
    mesh_search   the mesh and the step configuration that finish first and fit
    packs         runs grouped into packs, packs into a plan
    lineage       which runs start from which
    programs      the compiled program of a pack; compilation ahead of training
    slots         how many runs train side by side, measured and recorded
    topology      stand-ins for devices that are not here
    aot           compiles a plan's programs for them
    hlo           reads memory traffic and collectives from a compiled program
    compiled      what was read from one, and the roofline of its step
"""
