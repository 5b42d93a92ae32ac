"""One module an analysis: `analyse`, a pure function from a `Results` to a `Section`.

An experiment names its analyses by their modules; nothing else registers them.
"""
