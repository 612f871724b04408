"""Scalar mathematics of entropy models as Triton functions, one family per file: ``(w, theta) -> (bits, slope)``.

``w`` is float32 and ``theta`` a tuple of float32 scalars, the values of the family's ``device_theta``.
"""
