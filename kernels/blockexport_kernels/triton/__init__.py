"""GPU kernels in Triton, as operators of torch that torch.compile and AOTInductor carry into what they build.

One kernel a file, each with its operator and the function that checks arguments and calls it. `reference` says in plain
torch what each computes and imports no Triton; `checks` compares the two. Importing this package imports neither.
"""
