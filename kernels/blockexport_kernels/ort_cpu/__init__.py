"""CPU operators for ONNX Runtime that use a checkpoint's weights where they lie: nothing is repacked or copied.

`library.find_or_build` gives the library for `SessionOptions.register_custom_ops_library`; `reference` says in numpy
what each operator of the domain `blockexport.cpu` computes.
"""
