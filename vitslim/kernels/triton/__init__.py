"""The kernels in Triton: one module per subject, imported by the ops that need it, so that Triton stays optional."""
